"""F4: what each study's winner is worth, replicate by replicate, and the differences within them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.compare import cells
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    colour,
    label,
    layout,
    line_at,
    marker,
    rounded,
    short,
    spread_range,
    table,
    trace,
)
from search.compare.pairs import PairFinding
from search.compare.statistics.base import Interval, larger_is_better
from search.compare.statistics.intervals import describe

KEY = "scores"
TITLE = "Scores of the winners, and differences within replicates"

DOTS = -0.13
"""Where a method's dots stand beside its tick, and where its interval does."""
INTERVAL = 0.17


def scores_figure(material: Material) -> Figure | Omitted:
    """One dot per replicate and method, joined within replicates; beside it the declared differences."""
    primary = material.analysis.primary
    methods = [name for name in material.comparison.methods if primary.values.get(name)]
    if not methods:
        return Omitted(KEY, TITLE, "No study has a value to compare.")
    summaries = {
        name: describe(list(primary.values[name].values()), material.comparison.direction) for name in methods
    }
    panels = [_scores(material, methods, {name: one.mean for name, one in summaries.items()})]
    pairs = [pair for pair in material.analysis.pairs if pair.declared and pair.result.difference is not None]
    if pairs:
        panels.append(_differences(material, pairs))
    several = any(one.n > 1 for one in summaries.values())
    rows = [
        [
            cells.text(name),
            cells.count(one.n),
            cells.number(one.median),
            cells.with_interval(one.mean),
            cells.number(one.best),
            cells.number(one.worst),
        ]
        for name, one in summaries.items()
    ]
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"Left: {primary.title}, {material.replicates}; one dot per study, thin lines join a replicate's "
            f"studies, and beside the dots stands the mean{' with its 95 % interval' if several else ''}."
            + (
                " Right: the differences within replicates, turned so that right favours the first method; "
                "the shaded strip is smaller than what matters."
                if pairs
                else ""
            )
        ),
        panels=tuple(panels),
        table=table(
            KEY,
            TITLE,
            f"{primary.text} Means with 95 % intervals over replicates.",
            [
                ("method", "method"),
                ("replicates", "replicates"),
                ("median", "median"),
                ("mean", "mean (interval)"),
                ("best", "best"),
                ("worst", "worst"),
            ],
            rows,
            exploratory=False,
        ),
        data=Data(
            ("method", "replicate", "value"),
            tuple((name, r, value) for name in methods for r, value in sorted(primary.values[name].items())),
        ),
        columns=2 if pairs else 1,
        exploratory=False,
    )


def _scores(material: Material, methods: Sequence[str], means: dict[str, Interval]) -> Panel:
    values = {name: material.analysis.primary.values[name] for name in methods}
    everything = [v for of_method in values.values() for v in of_method.values()]
    data: list[Json] = [_joins(methods, values)] if len(methods) > 1 else []
    for place, name in enumerate(methods):
        index = material.index(name)
        replicates = sorted(values[name])
        data.append(
            trace(
                mode="markers",
                x=[place + DOTS] * len(replicates),
                y=rounded(values[name][r] for r in replicates),
                customdata=replicates,
                marker={"color": colour(index), "symbol": marker(index), "size": 7, "opacity": 0.6},
                hovertemplate=f"%{{y:.4g}}<extra>{label(name)}, replicate %{{customdata}}</extra>",
            )
        )
        data.append(_estimate(means[name], index, label(name), x=place + INTERVAL))
    ticks = {"tickvals": list(range(len(methods))), "ticktext": [short(label(name), 14) for name in methods]}
    x = axis("", range=[-0.6, len(methods) - 0.4], showgrid=False, **ticks)
    y = axis(short(label(material.analysis.primary.title), 44), range=spread_range(everything))
    return Panel(
        "By method",
        {"data": data, "layout": layout(x, y)},
        f"Dots per replicate for {', '.join(methods)}; the table below gives the numbers.",
    )


def _joins(methods: Sequence[str], values: Mapping[str, Mapping[int, float]]) -> Json:
    """One trace with gaps, a line per replicate."""
    x: list[float | None] = []
    y: list[float | None] = []
    of_method = [values[name] for name in methods]
    for replicate in sorted({r for found in of_method for r in found}):
        for place, found in enumerate(of_method):
            if replicate in found:
                x.append(place + DOTS)
                y.append(found[replicate])
        x.append(None)
        y.append(None)
    line: Json = {"width": 1, "color": "var(--rule-strong)"}
    return trace(mode="lines", x=x, y=y, line=line, opacity=0.55, hoverinfo="skip")


def _estimate(mean: Interval, index: int, name: str, *, x: float) -> Json:
    """A mean with its interval as an upright bar."""
    bar: Json = {}
    ends = ""
    if mean.low is not None and mean.high is not None:
        bar = {
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": rounded([mean.high - mean.estimate]),
                "arrayminus": rounded([mean.estimate - mean.low]),
                "color": colour(index),
                "thickness": 2,
                "width": 5,
            }
        }
        ends = f" ({mean.low:.4g} to {mean.high:.4g})"
    return trace(
        mode="markers",
        x=[x],
        y=rounded([mean.estimate]),
        marker={"color": colour(index), "symbol": marker(index), "size": 11},
        hovertemplate=f"%{{y:.4g}}{ends}<extra>{name}, mean</extra>",
        **bar,
    )


def _differences(material: Material, pairs: Sequence[PairFinding]) -> Panel:
    rules = material.analysis.rules
    scale = rules.scale
    data: list[Json] = []
    reach: list[float] = [-rules.smallest_difference * scale, rules.smallest_difference * scale, 0.0]
    for row, pair in enumerate(reversed(pairs)):
        found = within_replicates(material, pair)
        if found:
            data.append(
                trace(
                    mode="markers",
                    x=rounded(d * scale for _, d in found),
                    y=[row + 0.16] * len(found),
                    customdata=[r for r, _ in found],
                    marker={"color": "var(--quiet)", "size": 7, "opacity": 0.55},
                    hovertemplate="%{x:.3g}<extra>replicate %{customdata}</extra>",
                )
            )
            reach.extend(d * scale for _, d in found)
        data.append(_difference(pair, row, scale))
        assert pair.result.difference is not None
        ends = [pair.result.difference.low, pair.result.difference.high, pair.result.difference.estimate]
        reach.extend(end * scale for end in ends if end is not None)
    strip: Json = {
        "type": "rect",
        "x0": -rules.smallest_difference * scale,
        "x1": rules.smallest_difference * scale,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "fillcolor": "var(--rule)",
        "opacity": 0.55,
        "line": {"width": 0},
        "layer": "below",
    }
    names = [short(label(pair.name), 26).replace(" – ", "<br>– ") for pair in reversed(pairs)]
    y = axis("", tickvals=list(range(len(pairs))), ticktext=names, range=[-0.5, len(pairs) - 0.5])
    y["showgrid"] = False
    unit = f" ({label(rules.unit)})" if rules.unit else ""
    x = axis(f"difference{unit}", range=spread_range(reach))
    shapes = [strip, line_at(0.0, horizontal=False)]
    return Panel(
        "Differences within replicates",
        {"data": data, "layout": layout(x, y, shapes=shapes)},
        "; ".join(_spoken(pair, scale) for pair in pairs),
    )


def within_replicates(material: Material, pair: PairFinding) -> list[tuple[int, float]]:
    """Replicate and difference, first less second, turned so that larger is better; empty if unpaired."""
    values = material.analysis.primary.values
    first, second = values.get(pair.result.first, {}), values.get(pair.result.second, {})
    if not pair.result.paired:
        return []
    both = sorted(first.keys() & second.keys())
    turned = larger_is_better([first[r] - second[r] for r in both], material.comparison.direction)
    return [(r, float(d)) for r, d in zip(both, turned, strict=True)]


def _difference(pair: PairFinding, row: int, scale: float) -> Json:
    found = pair.result.difference
    assert found is not None
    bar: Json = {}
    if found.low is not None and found.high is not None:
        bar = {
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": rounded([(found.high - found.estimate) * scale]),
                "arrayminus": rounded([(found.estimate - found.low) * scale]),
                "color": "var(--text)",
                "thickness": 2,
                "width": 5,
            }
        }
    return trace(
        mode="markers",
        x=rounded([found.estimate * scale]),
        y=[row - 0.14],
        marker={"color": "var(--text)", "symbol": "diamond", "size": 10},
        hovertemplate=f"{label(_spoken(pair, scale))}<extra></extra>",
        **bar,
    )


def _spoken(pair: PairFinding, scale: float) -> str:
    found = pair.result.difference
    assert found is not None
    text = f"{pair.name}: mean difference {found.estimate * scale:.3g}"
    if found.low is None or found.high is None:
        return text
    return f"{text}, interval {found.low * scale:.3g} to {found.high * scale:.3g}"
