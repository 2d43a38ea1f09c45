"""Text of any origin inside our pages."""

from __future__ import annotations

import json

from markupsafe import Markup


def embed_json(value: object) -> Markup:
    """JSON that may stand inside a `<script>` element: it can't end the element nor begin a comment.

    U+2028 and U+2029, which older JavaScript took for line ends, are escaped with all non-ASCII.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return Markup(text)  # noqa: S704  escaped above
