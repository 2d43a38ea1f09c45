"""Jinja as the report uses it: strict, with the formats for people as filters."""

from __future__ import annotations

from collections.abc import Callable

import jinja2

from search.formats import (
    format_count,
    format_number,
    format_revision,
    format_seconds,
    format_spread,
    format_time,
    format_value,
)

TEMPLATES = jinja2.PackageLoader("search.compare", "templates")


def template_environment(
    *, autoescape: bool, finalize: Callable[[object], object] | None
) -> jinja2.Environment:
    """Templates that escape every string: HTML by `autoescape`, Markdown by `finalize`."""
    environment = jinja2.Environment(
        loader=TEMPLATES,
        autoescape=autoescape,  # noqa: S701  on for HTML; Markdown escapes by `finalize`
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "sd": format_spread,
        "value": format_value,
        "count": format_count,
        "seconds": format_seconds,
        "time": format_time,
        "revision": format_revision,
    }
    return environment
