"""F7: the distribution of all trials' values, a plain view of what each method visits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from search.compare import cells
from search.compare.figures.base import (
    LEGEND_ABOVE,
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    colour,
    counted,
    dash,
    label,
    layout,
    rounded,
    table,
    trace,
)
from search.compare.statistics.base import FloatArray
from search.compare.tables import Table

KEY = "trial-values"
TITLE = "What each method's trials were worth"

POINTS = 200
"""Most points of a drawn line, at equal shares of the trials."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Those that the table gives."""


def values_figure(material: Material) -> Figure | Omitted:
    """Empirical distribution functions of the values of trials that were trained to their end."""
    found = {method: _values(material, method) for method in material.comparison.methods}
    found = {method: values for method, values in found.items() if values.size}
    if not found:
        return Omitted(KEY, TITLE, "No trial was trained to its end.")
    total = counted(sum(values.size for values in found.values()), "trial")
    plot: Json = {
        "data": [_line(method, values, material.index(method)) for method, values in found.items()],
        "layout": layout(
            axis(f"{material.metric} of a trial"),
            axis("share of trials", range=[0, 1.02], tickformat=".0%"),
            legend=LEGEND_ABOVE,
        ),
    }
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"Share of a method's trials that are worth at most so much; {total} trained to their end, or "
            "diverged and so worth the worst, all "
            f"replicates together ({material.better}). It shows where a method spends its trials, not which "
            "method is better."
        ),
        panels=(
            Panel("", plot, "Distribution of trial values per method; the table below gives quantiles."),
        ),
        table=_table(found),
        data=Data(
            ("method", "value"),
            tuple((method, float(v)) for method, values in found.items() for v in values),
        ),
    )


def _values(material: Material, method: str) -> FloatArray:
    """The values of a method's trials that were trained to their end, ascending."""
    values = [
        trial.value
        for study in material.comparison.studies_of(method)
        for trial in study.trials
        if trial.state == "complete" and trial.value is not None and math.isfinite(trial.value)
    ]
    return np.sort(np.array(values, dtype=np.float64))


def _line(method: str, values: FloatArray, index: int) -> Json:
    shares = np.arange(1, values.size + 1) / values.size
    kept = np.unique(np.linspace(0, values.size - 1, POINTS).round().astype(int))
    return trace(
        mode="lines",
        name=label(method),
        showlegend=True,
        x=rounded(values[kept]),
        y=rounded(shares[kept]),
        line={"shape": "hv", "width": 2.2, "color": colour(index), "dash": dash(index)},
        hovertemplate=f"%{{y:.0%}} of trials at most %{{x:.4g}}<extra>{label(method)}</extra>",
    )


def _table(found: Mapping[str, FloatArray]) -> Table:
    return table(
        KEY,
        TITLE,
        "Quantiles of the values of trials that were trained to their end.",
        [
            ("method", "method"),
            ("trials", "trials"),
            *((f"q{round(100 * q)}", f"{round(100 * q)} %") for q in QUANTILES),
        ],
        [
            [
                cells.text(method),
                cells.count(values.size),
                *(cells.number(float(q)) for q in np.quantile(values, QUANTILES)),
            ]
            for method, values in found.items()
        ],
    )
