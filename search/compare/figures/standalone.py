"""Figures for other programs than our page: plotly's JSON with colours instead of `var(--…)`.

The page's light scheme on its white card, whatever scheme the other program has: the colours were
chosen to be read on it. A figure keeps the first of its views, for nothing there can choose one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from search.compare.figures.base import Figure, Json, label

_STYLE = Path(__file__).parents[1] / "templates" / "report.css"
_NAME = re.compile(r"var\((--[\w-]+)\)")


@cache
def light_colours() -> Mapping[str, str]:
    """Name → colour, as the page's style sheet has them in its light scheme, which comes first."""
    scheme = _STYLE.read_text(encoding="utf-8").partition("}")[0]
    return {name: value.strip() for name, value in re.findall(r"(--[\w-]+):\s*([^;]+);", scheme)}


def standalone(figure: Figure) -> tuple[Json, ...]:
    """One drawing per panel, each with the figure's title."""
    return tuple(
        {
            "data": [_coloured(trace) for trace in _list(panel.plot.get("data")) if _shown(figure, trace)],
            "layout": _layout(figure, panel.title, panel.plot.get("layout")),
        }
        for panel in figure.panels
    )


def _shown(figure: Figure, trace: object) -> bool:
    of = trace.get("meta") if isinstance(trace, Mapping) else None
    return not figure.views or of in {None, "always", figure.views[0].key}


def _layout(figure: Figure, part: str, layout: object) -> Json:
    given = dict(layout) if isinstance(layout, Mapping) else {}
    margin = given.get("margin")
    # Two lines: drawings stand two abreast there.
    text = f"{figure.title}<br><sup>{label(part)}</sup>" if part else figure.title
    title = {"text": text, "font": {"size": 15}, "pad": {"t": 14, "l": 14}}
    place = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
    coloured = _coloured(given)
    assert isinstance(coloured, dict)
    return coloured | {
        "title": title | place,
        "margin": {**(margin if isinstance(margin, Mapping) else {}), "t": 84},
        "paper_bgcolor": light_colours()["--card"],
        "plot_bgcolor": light_colours()["--card"],
        "template": {"layout": {}},
    }


def _coloured(value: object) -> object:
    """The value with every `var(--name)` replaced by its colour."""
    if isinstance(value, str):
        return _NAME.sub(lambda found: light_colours()[found[1]], value)
    if isinstance(value, Mapping):
        return {str(key): _coloured(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_coloured(entry) for entry in value]
    return value


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []
