"""Jinja for what schedules write: strict, every value through the filter of the form that is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2

from search.formats import format_number, format_seconds


def environment(*, finalize: Callable[[Any], Any]) -> jinja2.Environment:
    """Templates of `search/schedules/templates`; `finalize` escapes every value that is put in."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("search.schedules", "templates"),
        autoescape=False,  # noqa: S701  none of it is HTML; `finalize` escapes
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"number": format_number, "seconds": format_seconds}
    return made
