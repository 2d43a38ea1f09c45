"""Several experiments together: ranks and regrets with experiments as blocks (T11, for `shoal compare`).

A block's score of a method is the mean over replicates of the primary outcome: retrained test scores
if every experiment has them, else best validation values at each experiment's common budget. Only
methods that every experiment has a value for are ranked. Experiments on the same data aren't
independent blocks, and the result names them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.compare import cells
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.cells import left, right
from search.compare.headline import OutcomeKind
from search.compare.statistics.across_datasets import BLOCKS_FOR_RANKS, RankComparison, compare_ranks
from search.compare.statistics.power import ALPHA
from search.compare.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One experiment's mean per method."""

    experiment: str
    data: str
    metric: str
    scores: Mapping[str, float]
    """In the metric's own unit; methods with a value."""
    turned: Mapping[str, float]
    """The same with the sign turned if smaller is better, so that larger always is."""
    regrets: Mapping[str, float]
    """Mean normalised regret: 0 the best known, 1 a typical random trial; empty without random trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Across:
    """Several experiments together."""

    outcome: OutcomeKind
    blocks: tuple[Block, ...]
    methods: tuple[str, ...]
    """Those that every experiment has a value for, in the order of the first."""
    ranks: RankComparison | None
    """None with fewer than two common methods; without test and critical difference below 6 blocks."""
    regrets: Mapping[str, float]
    """Mean over experiments of the normalised regret, of common methods that all of them have one for."""
    repeated: tuple[str, ...]
    """Data that more than one experiment used."""
    text: str
    """What may be said, in a few sentences."""


def compare_experiments(found: Sequence[tuple[Comparison, Analysis]], *, alpha: float = ALPHA) -> Across:
    """Ranks and regrets over experiments. Raises ValueError for none, and for one named twice."""
    names = [comparison.experiment for comparison, _ in found]
    if not found or len(set(names)) < len(names):
        raise ValueError("One or more experiments are compared, each named once.")
    outcome: OutcomeKind = "retrained" if all(a.primary.kind == "retrained" for _, a in found) else "searched"
    blocks = tuple(_block(comparison, analysis, outcome) for comparison, analysis in found)
    methods = tuple(m for m in blocks[0].scores if all(m in block.scores for block in blocks))
    ranks = None
    if len(methods) > 1:
        rows = [[block.turned[method] for method in methods] for block in blocks]
        ranks = compare_ranks(rows, methods, "maximize", alpha=alpha)
    data = Counter(block.data for block in blocks)
    repeated = tuple(name for name, times in data.items() if times > 1)
    return Across(
        outcome=outcome,
        blocks=blocks,
        methods=methods,
        ranks=ranks,
        regrets={
            method: statistics.fmean(block.regrets[method] for block in blocks)
            for method in methods
            if all(method in block.regrets for block in blocks)
        },
        repeated=repeated,
        text=_text(len(blocks), methods, ranks, repeated),
    )


def _block(comparison: Comparison, analysis: Analysis, outcome: OutcomeKind) -> Block:
    values: dict[str, list[float]] = {method: [] for method in comparison.methods}
    if outcome == analysis.primary.kind:
        values = {method: list(found.values()) for method, found in analysis.primary.values.items()}
    else:
        for study in analysis.studies:
            if study.counted and study.at_budget is not None:
                values[study.method].append(study.at_budget)
    scores = {method: statistics.fmean(found) for method, found in values.items() if found}
    sign = 1 if comparison.direction == "maximize" else -1
    data = comparison.spec.get("data")
    return Block(
        experiment=comparison.experiment,
        data=str(data.get("name")) if isinstance(data, Mapping) else str(data),
        metric=comparison.metric,
        scores=scores,
        turned={method: sign * score for method, score in scores.items()},
        regrets={
            method.method: method.normalised.mean.estimate
            for method in (() if analysis.regret is None else analysis.regret.methods)
            if method.normalised is not None
        },
    )


def _text(
    blocks: int, methods: tuple[str, ...], ranks: RankComparison | None, repeated: tuple[str, ...]
) -> str:
    if ranks is None:
        return "Fewer than two methods have a value in every experiment: there is nothing to rank."
    best = min(zip(ranks.average_ranks, methods, strict=True))
    said = [f"Lowest average rank over {blocks} experiments: {best[1]}, {best[0]:.2f}."]
    if blocks < BLOCKS_FOR_RANKS:
        said.append(
            f"Too few experiments for a test of ranks: {blocks}, where {BLOCKS_FOR_RANKS} are the least."
        )
    elif ranks.critical_difference is not None:
        said.append(
            f"Ranks further apart than {ranks.critical_difference:.2f} differ by Nemenyi's test at alpha "
            f"{ranks.alpha:g}."
        )
        if ranks.friedman_p is not None:
            said.append(f"Friedman's test that all rank alike: {_p(ranks.friedman_p)}.")
    if repeated:
        said.append(
            f"Experiments on the same data are not independent, and the test takes them to be: "
            f"{', '.join(repeated)}."
        )
    return " ".join(said)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def across_table(across: Across) -> Table:
    """T11: average rank and regret per method, and its score in each experiment."""
    ranks = dict(
        zip(across.methods, () if across.ranks is None else across.ranks.average_ranks, strict=False)
    )
    outcome = "test, retrained" if across.outcome == "retrained" else "validation, in the search"
    return Table(
        key="across",
        title="Several experiments together",
        caption=(
            f"Average rank (1 is best), mean normalised regret over {len(across.blocks)} experiments, and "
            f"each method's mean over replicates ({outcome}). {across.text}"
        ),
        columns=(
            left("method", "method"),
            right("rank", "average rank"),
            right("regret", "normalised regret"),
            *(
                right(f"score.{block.experiment}", f"{block.experiment} ({block.metric})")
                for block in across.blocks
            ),
        ),
        rows=tuple(
            (
                cells.text(method),
                cells.number(ranks.get(method)),
                cells.number(across.regrets.get(method)),
                *(cells.number(block.scores.get(method)) for block in across.blocks),
            )
            for method in across.methods
        ),
        exploratory=True,
    )
