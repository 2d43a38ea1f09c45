"""F10: learning curves of winners, and of pruned and kept trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from search.compare import cells
from search.compare.base import EpochPoint, TrialOutcome
from search.compare.figures.base import (
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
    end_labels,
    label,
    label_margin,
    layout,
    rounded,
    short,
    spread_range,
    table,
    trace,
)
from search.compare.tables import Value

LINES = 40
"""Most trials of a kind whose curves a panel shows."""
PANELS = 6
FEW_EPOCHS = 8
"""So many have a tick each."""

LOSSES = (
    " Losses: solid on validation images, dashed on training images; each config's own loss, so compare the "
    "gap within a line, not levels between lines."
)


def winners_figure(material: Material) -> Figure | Omitted:
    """The metric of each study's winner per epoch, and its losses on training and validation images."""
    key, title = "learning-curves", "Learning curves of the winners"
    winners = [
        (result.method, result.replicate, result.incumbent)
        for result in material.analysis.studies
        if result.incumbent is not None and result.incumbent.curve
    ]
    if not winners:
        return Omitted(key, title, "No winner has a learning curve.")
    methods = [m for m in material.comparison.methods if any(m == method for method, _, _ in winners)]
    panels = [_metric_panel(material, methods, winners)]
    for method in methods[:PANELS]:
        own = [trial for name, _, trial in winners if name == method][:LINES]
        if any(point.train_loss is not None for trial in own for point in trial.curve):
            panels.append(_loss_panel(material, method, own))
    rows = [
        [
            cells.text(method),
            cells.count(len(own)),
            *(
                cells.number(_median(_final(trial, part) for trial in own))
                for part in ("value", "train", "validation")
            ),
        ]
        for method in methods
        for own in [[trial for name, _, trial in winners if name == method]]
    ]
    return Figure(
        key=key,
        title=title,
        caption=(
            f"The winner of each study, {len(winners)} in all: thin lines "
            f"are winners, thick ones their median.{LOSSES if len(panels) > 1 else ''}"
        ),
        panels=tuple(panels),
        table=table(
            key,
            title,
            "Medians over winners at their last epoch.",
            [
                ("method", "method"),
                ("winners", "winners"),
                ("value", material.comparison.metric),
                ("train_loss", "training loss"),
                ("validation_loss", "validation loss"),
            ],
            rows,
        ),
        data=Data(
            ("method", "replicate", "trial", "epoch", "value", "train_loss", "validation_loss"),
            tuple(
                (method, replicate, trial.number, p.epoch, p.value, p.train_loss, p.validation_loss)
                for method, replicate, trial in winners
                for p in trial.curve
            ),
        ),
        columns=2,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _final(trial: TrialOutcome, part: str) -> float | None:
    last = trial.curve[-1]
    return {"value": last.value, "train": last.train_loss, "validation": last.validation_loss}[part]


def _joined(trials: Sequence[TrialOutcome], part: str, **looks: object) -> Json:
    """All curves as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for trial in trials:
        points = [(p.epoch, _of(p, part)) for p in trial.curve]
        x.extend([*(float(epoch) for epoch, _ in points), None])
        y.extend([*rounded(math.nan if v is None else v for _, v in points), None])
    return trace(mode="lines", x=x, y=y, hoverinfo="skip", **looks)


def _of(point: EpochPoint, part: str) -> float | None:
    return {"value": point.value, "train": point.train_loss, "validation": point.validation_loss}[part]


def _metric_panel(
    material: Material, methods: Sequence[str], winners: Sequence[tuple[str, int, TrialOutcome]]
) -> Panel:
    data: list[Json] = []
    ends = []
    everything = [p.value for _, _, trial in winners for p in trial.curve if p.value is not None]
    if not everything:
        everything = [0.0, 1.0]
    window = spread_range(everything)
    for method in methods:
        index = material.index(method)
        own = [trial for name, _, trial in winners if name == method]
        looks: Json = {"line": {"width": 1, "color": colour(index)}, "opacity": 0.3}
        data.append(_joined(own[:LINES], "value", **looks))
        middle = _median_curve(own)
        if not middle:
            continue
        data.append(
            trace(
                mode="lines",
                x=[epoch for epoch, _ in middle],
                y=rounded(value for _, value in middle),
                line={"width": 2.4, "color": colour(index), "dash": dash(index)},
                hovertemplate=f"%{{y:.4g}} at epoch %{{x}}<extra>{label(method)}, median</extra>",
            )
        )
        ends.append((method, index, middle[-1][1]))
    plot = layout(
        epoch_axis([trial for _, _, trial in winners]),
        axis(material.metric, range=window),
        annotations=end_labels(ends, window[0], window[1], 215),
        margin=label_margin(name for name, _, _ in ends),
    )
    judged = short(material.comparison.metric)
    return Panel(
        judged if material.comparison.is_function else f"Validation {judged}",
        {"data": data, "layout": plot},
        "The winners' values per epoch; the table below gives last values.",
    )


def epoch_axis(trials: Sequence[TrialOutcome], **settings: object) -> Json:
    """Epochs are whole: of a few each has its tick."""
    most = max((trial.curve[-1].epoch for trial in trials if trial.curve), default=0)
    return axis("epoch", **({"dtick": 1} if most <= FEW_EPOCHS else {}), **settings)


def _median_curve(trials: Sequence[TrialOutcome]) -> list[tuple[int, float]]:
    """The median per epoch, as far as at least half of the trials were trained."""
    at: dict[int, list[float]] = {}
    for trial in trials:
        for point in trial.curve:
            if point.value is not None and math.isfinite(point.value):
                at.setdefault(point.epoch, []).append(point.value)
    enough = [epoch for epoch in sorted(at) if 2 * len(at[epoch]) >= len(trials)]
    return [(epoch, statistics.median(at[epoch])) for epoch in enough]


def _loss_panel(material: Material, method: str, own: Sequence[TrialOutcome]) -> Panel:
    index = material.index(method)
    solid: Json = {"line": {"width": 1.2, "color": colour(index)}, "opacity": 0.6}
    dashed: Json = {"line": {"width": 1.2, "color": colour(index), "dash": "dot"}, "opacity": 0.6}
    positive = all(
        v > 0 for t in own for p in t.curve for v in (p.train_loss, p.validation_loss) if v is not None
    )
    y = axis("loss (log scale)", type="log", dtick=1) if positive else axis("loss")
    return Panel(
        f"Losses of {short(method)}'s winners",
        {
            "data": [_joined(own, "validation", **solid), _joined(own, "train", **dashed)],
            "layout": layout(epoch_axis(own), y),
        },
        f"Training and validation loss of {method}'s winners per epoch.",
    )


def pruned_figure(material: Material) -> Figure | Omitted:
    """Validation curves of trials that were pruned, beside those that were trained to their end."""
    key, title = "pruned", "Pruned and kept trials"
    by_method = {
        method: [
            trial
            for study in material.comparison.studies_of(method)
            for trial in study.trials
            if trial.curve and trial.state in {"complete", "pruned"} and not trial.diverged
        ]
        for method in material.comparison.methods
    }
    pruned = sum(trial.state == "pruned" for trials in by_method.values() for trial in trials)
    if not pruned:
        return Omitted(key, title, "No trial was pruned.")
    rows = []
    judged = material.comparison.judged
    data: list[tuple[Value, ...]] = []
    for method, trials in by_method.items():
        cut = [trial.epochs for trial in trials if trial.state == "pruned"]
        rows.append(
            [
                cells.text(method),
                cells.count(len(trials) - len(cut)),
                cells.count(len(cut)),
                cells.number(_median(cut)),
            ]
        )
        for trial in _sample(trials, "pruned") + _sample(trials, "complete"):
            data.extend((method, trial.number, trial.state, p.epoch, p.value) for p in trial.curve)
    return Figure(
        key=key,
        title=title,
        caption=(
            f"{judged[0].upper()}{judged[1:]} per epoch; solid: trained to the end, dotted with a "
            f"cross at its end: pruned. {counted(pruned, 'trial')} pruned in all; at most {LINES} of each "
            "kind are drawn per method, with a fixed seed."
        ),
        panels=tuple(
            _pruned_panel(material, method, trials)
            for method, trials in list(by_method.items())[:PANELS]
            if trials
        ),
        table=table(
            key,
            title,
            "How many trials were kept and pruned, and after how many epochs.",
            [
                ("method", "method"),
                ("kept", "kept"),
                ("pruned", "pruned"),
                ("epochs", "median epochs of the pruned"),
            ],
            rows,
        ),
        data=Data(("method", "trial", "state", "epoch", "value"), tuple(data)),
        columns=3,
    )


def _sample(trials: Sequence[TrialOutcome], state: str) -> list[TrialOutcome]:
    found = [trial for trial in trials if trial.state == state]
    if len(found) <= LINES:
        return found
    chosen = np.random.default_rng(0).choice(len(found), size=LINES, replace=False)
    return [found[k] for k in sorted(chosen.tolist())]


def _pruned_panel(material: Material, method: str, trials: Sequence[TrialOutcome]) -> Panel:
    index = material.index(method)
    kept, pruned = _sample(trials, "complete"), _sample(trials, "pruned")
    data = [
        _joined(kept, "value", line={"width": 1.1, "color": colour(index)}, opacity=0.5),
        _joined(pruned, "value", line={"width": 1, "color": "var(--quiet)", "dash": "dot"}, opacity=0.7),
        trace(
            mode="markers",
            x=[trial.curve[-1].epoch for trial in pruned],
            y=rounded(math.nan if (v := trial.curve[-1].value) is None else v for trial in pruned),
            marker={"symbol": "x-thin", "size": 6, "line": {"width": 1.4, "color": "var(--quiet)"}},
            hovertemplate="pruned at epoch %{x}: %{y:.4g}<extra></extra>",
        ),
    ]
    return Panel(
        short(method, 30),
        {"data": data, "layout": layout(epoch_axis(trials, rangemode="tozero"), axis(material.metric))},
        f"Curves of {len(kept)} kept and {len(pruned)} pruned trials of {method}.",
    )
