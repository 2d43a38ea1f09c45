"""`shoal serve`: a read-only view of experiments in a browser.

Pages are made whole on the server from a few SQL aggregates (`storage.pages`); figures are SVG, made
from values by pure functions (`charts`). A small script asks now and then whether anything changed
and puts the new page's content in place; without it the pages are the same, only still.
"""
