"""Several experiments put together, as `shoal compare` shows them: tables, figures and remarks.

A pure function of what each experiment's own report is made of; `across` has the ranks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from search.compare import cells
from search.compare.across import Across, across_table, compare_experiments, data_of
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.cells import left, right
from search.compare.differing import Obstacle, difference_table, obstacles, remarks
from search.compare.figures.across import parallelism_figure, ranks_figure
from search.compare.figures.base import Figure, Omitted
from search.compare.figures.regrets import regrets_figure
from search.compare.pairs import PairFinding
from search.compare.result_tables import verdict_text
from search.compare.statistics.hypothesis_tests import holm
from search.compare.statistics.power import ALPHA
from search.compare.tables import Cell, Table
from search.experiment.settings import METHODS

Found: TypeAlias = Sequence[tuple[Comparison, Analysis]]


class NotComparable(Exception):  # noqa: N818 - it says what the experiments are
    """Experiments that can't be put together; `obstacles` says why, at least one."""

    def __init__(self, found: Sequence[Obstacle]) -> None:
        super().__init__("; ".join(f"{one.experiment}: {one.text}" for one in found))
        self.obstacles = tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Everything that `shoal compare` says."""

    found: tuple[tuple[Comparison, Analysis], ...]
    across: Across
    remarks: tuple[str, ...]
    """What a reader must know before believing the ranks."""
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    omitted: tuple[Omitted, ...]

    @property
    def experiments(self) -> tuple[str, ...]:
        """Their names, in the order in which they were named."""
        return tuple(comparison.experiment for comparison, _ in self.found)

    @property
    def verdicts(self) -> tuple[tuple[str, str], ...]:
        """Each experiment with the verdict of its own report."""
        return tuple(
            (comparison.experiment, analysis.conclusion.verdict) for comparison, analysis in self.found
        )

    @property
    def collected_at(self) -> datetime:
        """When the last of them was read."""
        return max(comparison.collected_at for comparison, _ in self.found)


def together(found: Found, *, methods: Sequence[str] | None = None) -> Together:
    """Ranks, regrets and each experiment's own findings, of these methods if any are named.

    Raises `NotComparable` for experiments without the same methods, and ValueError for none and for
    one that is named twice.
    """
    comparisons = [comparison for comparison, _ in found]
    across = compare_experiments(found, methods=methods, alpha=_alpha(found))
    in_the_way = obstacles(comparisons, [frozenset(block.scores) for block in across.blocks], methods)
    if in_the_way:
        raise NotComparable(in_the_way)
    if len(across.methods) < 2:
        text = f"only {', '.join(across.methods)}: two methods are the least that can be compared"
        raise NotComparable([Obstacle("", text)])
    figures = (
        ranks_figure(
            {b.experiment: {m: b.turned[m] for m in across.methods} for b in across.blocks},
            "maximize",
            alpha=_alpha(found),
        )
        if not across.repeated
        else Omitted("ranks", "Average ranks over datasets", "Some experiments share their data."),
        regrets_figure(across),
        parallelism_figure(*_in_flight(found, across.methods)),
    )
    tables = (
        across_table(across),
        _experiments(found, across),
        _headlines(found, across),
        _pairs(found, across.methods),
        difference_table(comparisons),
    )
    return Together(
        found=tuple(found),
        across=across,
        remarks=remarks(comparisons, across.methods),
        tables=tuple(table for table in tables if table.rows),
        figures=tuple(figure for figure in figures if isinstance(figure, Figure)),
        omitted=tuple(figure for figure in figures if isinstance(figure, Omitted)),
    )


def _alpha(found: Found) -> float:
    """What all experiments declared, or the usual one where they don't agree."""
    declared = {analysis.rules.alpha for _, analysis in found}
    return declared.pop() if len(declared) == 1 else ALPHA


def _experiments(found: Found, across: Across) -> Table:
    """One row per experiment."""
    rows = []
    for (comparison, analysis), block in zip(found, across.blocks, strict=True):
        best = max(block.turned[method] for method in across.methods)
        leaders = [method for method in across.methods if block.turned[method] == best]
        trials = [len(study.trials) for study in comparison.studies if study.method in across.methods]
        rows.append(
            (
                cells.text(comparison.experiment),
                cells.text(block.data),
                cells.text(f"{comparison.metric}, {_better(comparison)}"),
                cells.count(len(analysis.replicates)),
                cells.number(statistics.median(trials)),
                cells.text(", ".join(leaders)),
            )
        )
    return Table(
        key="experiments",
        title="The experiments",
        caption=(
            "Best mean: of the methods compared here, without asking whether the difference is more than "
            "chance."
        ),
        columns=(
            left("experiment", "experiment"),
            left("data", "data"),
            left("metric", "metric"),
            right("replicates", "replicates"),
            right("trials", "trials per study"),
            left("best", "best mean"),
        ),
        rows=tuple(rows),
    )


def _better(comparison: Comparison) -> str:
    return "higher is better" if comparison.direction == "maximize" else "lower is better"


def _headlines(found: Found, across: Across) -> Table:
    """One row per experiment and method: the rows of each report's headline."""
    rows: list[tuple[Cell, ...]] = []
    for (comparison, analysis), block in zip(found, across.blocks, strict=True):
        ranked = sorted(across.methods, key=lambda method: -block.turned[method])
        for result in analysis.methods:
            if result.method not in ranked:
                continue
            score, bias = result.score, result.selection_bias
            rows.append(
                (
                    cells.text(comparison.experiment),
                    cells.text(result.method),
                    cells.text(analysis.primary.title),
                    cells.count(0 if score is None else score.n),
                    cells.median(score),
                    cells.quartiles(score),
                    cells.number(None if score is None else score.mean.estimate),
                    cells.ends(None if score is None else score.mean),
                    cells.number(block.regrets.get(result.method)),
                    cells.difference(None if bias is None else bias.mean, analysis.rules.scale)[0],
                )
            )
    return Table(
        key="headlines",
        title="Each experiment's headline",
        caption=(
            "As in the experiments' own reports. Intervals are bootstrapped over replicates. Normalised "
            "regret: 0 the best value known, 1 a typical random trial."
        ),
        columns=(
            left("experiment", "experiment"),
            left("method", "method"),
            left("outcome", "outcome"),
            right("n", "replicates"),
            right("median", "median"),
            right("quartiles", "middle half"),
            right("mean", "mean"),
            right("mean_interval", "95 % interval"),
            right("regret", "normalised regret"),
            right("selection_bias", "selection bias"),
        ),
        rows=tuple(rows),
    )


def _pairs(found: Found, methods: Sequence[str]) -> Table:
    """The declared pairs of all experiments, with Holm's correction over all of them."""
    entries = [
        (comparison.experiment, analysis, pair)
        for comparison, analysis in found
        for pair in analysis.pairs
        if pair.declared and {pair.result.first, pair.result.second} <= set(methods)
    ]
    tests = [pair.result.test.p_value for _, _, pair in entries if pair.result.test is not None]
    corrected = iter(holm(tests))
    rows = tuple(
        _pair_row(experiment, analysis, pair, next(corrected) if pair.result.test is not None else None)
        for experiment, analysis, pair in entries
    )
    return Table(
        key="pairs",
        title="Declared pairs in each experiment",
        caption=(
            "Difference: the first method less the second on the experiment's primary outcome, turned so "
            "that positive favours the first, in points where the metric is a share. p (Holm): corrected "
            f"over the experiment's own pairs; p (all): over the {len(tests)} tests of this table. The "
            "verdicts are the experiments' own."
        ),
        columns=(
            left("experiment", "experiment"),
            left("pair", "pair"),
            right("replicates", "replicates"),
            right("difference", "mean difference"),
            right("difference_interval", "95 % interval"),
            right("superiority", "P(first better)"),
            right("superiority_interval", "95 % interval"),
            right("holm_p", "p (Holm)"),
            right("all_p", "p (all)"),
            left("verdict", "verdict"),
        ),
        rows=rows,
    )


def _pair_row(
    experiment: str, analysis: Analysis, pair: PairFinding, over_all: float | None
) -> tuple[Cell, ...]:
    result, scale = pair.result, analysis.rules.scale
    return (
        cells.text(experiment),
        cells.text(pair.name),
        cells.count(result.replicates),
        *cells.difference(result.difference, scale),
        cells.probability(result.superiority),
        cells.probability_ends(result.superiority),
        cells.p_value(result.holm_p),
        cells.p_value(over_all),
        Cell(result.verdict, verdict_text(pair)),
    )


def _in_flight(found: Found, methods: Sequence[str]) -> tuple[dict[str, dict[int, list[float]]], str]:
    """Regrets by method and trials in flight over the largest group of experiments alike in the rest.

    Only with a number in the file, and to the best value that any experiment of the group found.
    """
    groups: dict[tuple[str, ...], list[tuple[Comparison, Analysis]]] = {}
    for comparison, analysis in found:
        alike = (comparison.spec.get(name) for name in ("budget", "space", "fixed", "pruner"))
        key = (comparison.metric, comparison.direction, data_of(comparison), *map(str, alike))
        groups.setdefault(key, []).append((comparison, analysis))
    (metric, direction, *_), group = max(groups.items(), key=lambda entry: len(entry[1]))
    values = [s.searched for _, a in group for s in a.studies if s.incumbent and s.searched is not None]
    best = max(values, default=0.0) if direction == "maximize" else min(values, default=0.0)
    regrets: dict[str, dict[int, list[float]]] = {method: {} for method in methods}
    for comparison, analysis in group:
        for study in analysis.studies:
            at_once = trials_in_flight(comparison, study.method)
            if study.method in regrets and study.counted and study.searched is not None and at_once:
                regrets[study.method].setdefault(at_once, []).append(abs(best - study.searched))
    return regrets, metric


def trials_in_flight(comparison: Comparison, method: str) -> int | None:
    """How many trials of a study the file lets run at once; None: it sets no limit."""
    settings = comparison.spec.get("methods")
    own = settings.get(method) if isinstance(settings, Mapping) else None
    kind = METHODS.get(method)
    default = None if kind is None else kind.model_fields["in_flight"].default
    value = own.get("in_flight", default) if isinstance(own, Mapping) else default
    return value if isinstance(value, int) and not isinstance(value, bool) else None
