"""F8: importances with their spread."""

from __future__ import annotations

from search.compare.figures.base import (
    LEGEND_ABOVE,
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    label,
    layout,
    rounded,
    short,
    trace,
)
from search.compare.learned.importance import Importance, Importances
from search.compare.learned.learn import importance_caption, learned_tables
from search.compare.tables import Value

KEY = "importances"
TITLE = "Which dimensions matter"


def importance_figure(material: Material) -> Figure | Omitted:
    """Bars of PED-ANOVA with dots of fANOVA, both with their spread."""
    found = material.learned.importances
    if isinstance(found, str) or material.learned.arm is None:
        return Omitted(KEY, TITLE, str(found))
    return Figure(
        key=KEY,
        title=TITLE,
        caption=importance_caption(found, material.learned.arm),
        panels=(
            Panel(
                "",
                _plot(found),
                f"Importance: {', '.join(_spoken(one) for one in found.found)}.",
                rows=len(found.found),
            ),
        ),
        table=learned_tables(material.learned)[0],
        data=_data(found),
    )


def _plot(found: Importances) -> Json:
    # The most important stands on top, which is the last one for plotly.
    order = list(reversed(found.found))
    names = [short(label(one.axis.name), 24) for one in order]
    rows = list(range(len(order)))
    bars = trace(
        "bar",
        orientation="h",
        name="PED-ANOVA",
        showlegend=True,
        y=[row + 0.13 for row in rows],
        x=rounded(one.ped_mean for one in order),
        width=0.42,
        customdata=names,
        marker={"color": "var(--accent-mid)"},
        hovertemplate="%{x:.2f}<extra>%{customdata}, PED-ANOVA</extra>",
        **_spread([(one.ped_mean, one.ped_sd) for one in order], "var(--accent)"),
    )
    told = [(row, one) for row, one in zip(rows, order, strict=True) if one.fanova_mean is not None]
    dots = trace(
        mode="markers",
        name="fANOVA",
        showlegend=True,
        y=[row - 0.26 for row, _ in told],
        x=rounded(one.fanova_mean or 0.0 for _, one in told),
        customdata=[names[row] for row, _ in told],
        marker={"color": "var(--text)", "symbol": "diamond", "size": 9},
        hovertemplate="%{x:.2f}<extra>%{customdata}, fANOVA</extra>",
        **_spread([(one.fanova_mean or 0.0, one.fanova_sd) for _, one in told], "var(--quiet)"),
    )
    down = axis("", showgrid=False, ticks="", tickvals=rows, ticktext=names, range=[-0.6, len(order) - 0.4])
    return {
        "data": [bars, dots],
        "layout": layout(
            axis("importance (share, 0 to 1)", rangemode="tozero"),
            down,
            legend=LEGEND_ABOVE,
        ),
    }


def _spread(found: list[tuple[float, float | None]], colour: str) -> Json:
    """A standard deviation to both sides, but not below 0, where no importance is."""
    if any(sd is None for _, sd in found):
        return {}
    return {
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": rounded(sd or 0.0 for _, sd in found),
            "arrayminus": rounded(min(sd or 0.0, mean) for mean, sd in found),
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        }
    }


def _spoken(one: Importance) -> str:
    return f"{one.axis.name} {one.ped_mean:.2f}"


def _data(found: Importances) -> Data:
    rows: list[tuple[Value, ...]] = []
    for one in found.found:
        for name, shares in (("ped_anova", one.ped_anova), ("fanova", one.fanova)):
            rows.extend(
                (one.axis.name, one.axis.conditional, name, sample, share)
                for sample, share in enumerate(shares)
            )
    return Data(("dimension", "conditional", "estimator", "sample", "share"), tuple(rows))
