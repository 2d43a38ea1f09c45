"""F5: how soon studies are as good as random search was in the end."""

from __future__ import annotations

from search.compare import cells
from search.compare.efficiency import AxisEfficiency, MethodEfficiency
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    colour,
    dash,
    end_labels,
    label,
    label_margin,
    layout,
    line_at,
    rounded,
    table,
    trace,
)
from search.compare.tables import Value
from search.formats import format_number

KEY = "time-to-target"
TITLE = "Time to the target"

UNITS = {
    "trials": "trials per study",
    "epochs": "epochs per study",
    "seconds": "device and sampler seconds per study",
}


def target_figure(material: Material) -> Figure | Omitted:
    """Kaplan and Meier's estimate of the share of studies that have reached the target, per axis."""
    found = material.analysis.efficiency
    if found.target is None or not found.axes:
        return Omitted(KEY, TITLE, found.text)
    if len(material.analysis.replicates) < 2:
        return Omitted(KEY, TITLE, "A share of studies takes two replicates; the table has the times.")
    declared = material.analysis.protocol.declared_axis
    axes = sorted(found.axes, key=lambda entry: entry.axis != declared)
    rows = [
        [
            cells.text(one.method),
            cells.text(UNITS[entry.axis]),
            cells.count(one.times.successes),
            cells.count(one.times.n),
            cells.number(one.survival.median),
            *cells.speed_up(one.speed_up),
        ]
        for entry in axes
        for one in entry.methods
    ]
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"Share of studies whose best value has reached {format_number(found.target)}, the median of "
            f"what random search reached in the end; {material.replicates}, Kaplan–Meier estimate. "
            "A study that never gets there is censored where the budget ends, so a line may end below 1."
            + _worth(axes)
        ),
        panels=tuple(_panel(material, entry) for entry in axes),
        table=table(
            KEY,
            TITLE,
            f"{found.text} Worth of one: random search's budget for the same median, over the method's, at "
            "the final median of whichever of the two ended worse.",
            [
                ("method", "method"),
                ("axis", "budget"),
                ("reached", "reached"),
                ("studies", "studies"),
                ("median", "median time"),
                ("speed_up", "worth of one"),
                ("speed_up_interval", "95 % interval"),
            ],
            rows,
        ),
        data=_data(axes),
        columns=3,
    )


def _worth(axes: list[AxisEfficiency]) -> str:
    """How many random trials one trial of each method is worth, in a sentence."""
    of_trials = next((entry for entry in axes if entry.axis == "trials"), None)
    told = [
        f"{one.method} {one.speed_up}"
        for one in (() if of_trials is None else of_trials.methods)
        if one.speed_up is not None
    ]
    return (
        f" What a trial is worth in random ones, for the same median at the end: {'; '.join(told)}."
        if told
        else ""
    )


def _panel(material: Material, entry: AxisEfficiency) -> Panel:
    data: list[Json] = []
    ends = []
    for one in entry.methods:
        index = material.index(one.method)
        x = [*one.survival.at, entry.budget]
        y = [1 - share for share in one.survival.not_reached]
        data.append(
            trace(
                mode="lines",
                x=rounded(x),
                y=rounded([*y, y[-1]]),
                line={"shape": "hv", "width": 2.2, "color": colour(index), "dash": dash(index)},
                hovertemplate=f"%{{y:.0%}} after %{{x:.4~g}}<extra>{label(one.method)}</extra>",
            )
        )
        ends.append((one.method, index, y[-1]))
    x_axis = axis(UNITS[entry.axis], rangemode="tozero")
    y_axis = axis("share that reached it", range=[-0.02, 1.04], tickformat=".0%")
    return Panel(
        f"Against {entry.axis}",
        {
            "data": data,
            "layout": layout(
                x_axis,
                y_axis,
                shapes=[line_at(0.5, strong=False)],
                annotations=end_labels(ends, -0.02, 1.04, 215),
                margin=label_margin(name for name, _, _ in ends),
            ),
        },
        f"Against {entry.axis}: {'; '.join(_spoken(one) for one in entry.methods)}.",
    )


def _spoken(one: MethodEfficiency) -> str:
    reached = f"{one.method}: {one.times.successes} of {one.times.n} studies reached the target"
    if one.survival.median is None:
        return reached
    return f"{reached}, half of them by {format_number(one.survival.median)}"


def _data(axes: list[AxisEfficiency]) -> Data:
    rows: list[tuple[Value, ...]] = []
    for entry in axes:
        for one in entry.methods:
            steps = zip(one.survival.at, one.survival.not_reached, strict=True)
            rows.extend((entry.axis, one.method, at, 1 - share) for at, share in steps)
    return Data(("axis", "method", "budget", "reached"), tuple(rows))
