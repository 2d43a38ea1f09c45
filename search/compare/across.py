"""Several experiments together: ranks and regrets with experiments as blocks (T11, for `shoal compare`).

A block's score of a method is the mean over replicates of the primary outcome: retrained test scores
if every experiment has them, else best validation values at each experiment's common budget. Only
methods that every experiment has a value for are ranked. A test over blocks takes them to be
independent, so none is made where two experiments used the same data; the result names those data.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from search.compare import cells
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.cells import left, right
from search.compare.primary import OutcomeKind
from search.compare.protocol import in_line
from search.compare.statistics.across_datasets import BLOCKS_FOR_RANKS, RankComparison, compare_ranks
from search.compare.statistics.power import ALPHA
from search.compare.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One experiment's mean per method."""

    experiment: str
    data: str
    """Which images, or which function (`data_of`)."""
    metric: str
    is_function: bool
    """Whether a function is searched, which has no images."""
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
    """None with fewer than two common methods. Without test and critical difference below 6 blocks, and
    where blocks share their data."""
    regrets: Mapping[str, float]
    """Mean over experiments of the normalised regret, of common methods that all of them have one for."""
    repeated: tuple[str, ...]
    """Data that more than one experiment used."""
    text: str
    """What may be said, in a few sentences."""


def compare_experiments(
    found: Sequence[tuple[Comparison, Analysis]],
    *,
    methods: Sequence[str] | None = None,
    alpha: float = ALPHA,
) -> Across:
    """Ranks and regrets over experiments, of these methods if any are named.

    Raises ValueError for no experiment, and for one named twice.
    """
    names = [comparison.experiment for comparison, _ in found]
    if not found or len(set(names)) < len(names):
        raise ValueError("One or more experiments are compared, each named once.")
    outcome: OutcomeKind = "retrained" if all(a.primary.kind == "retrained" for _, a in found) else "searched"
    blocks = tuple(_block(comparison, analysis, outcome) for comparison, analysis in found)
    ranked = tuple(
        method
        for method in blocks[0].scores
        if all(method in block.scores for block in blocks) and (methods is None or method in methods)
    )
    data = Counter(block.data for block in blocks)
    repeated = tuple(name for name, times in data.items() if times > 1)
    ranks = None
    if len(ranked) > 1:
        rows = [[block.turned[method] for method in ranked] for block in blocks]
        ranks = compare_ranks(rows, ranked, "maximize", alpha=alpha)
        if repeated:
            ranks = replace(ranks, friedman_p=None, critical_difference=None, groups=())
    return Across(
        outcome=outcome,
        blocks=blocks,
        methods=ranked,
        ranks=ranks,
        regrets={
            method: statistics.fmean(block.regrets[method] for block in blocks)
            for method in ranked
            if all(method in block.regrets for block in blocks)
        },
        repeated=repeated,
        text=_text(len(blocks), ranked, ranks, repeated),
    )


def data_of(comparison: Comparison) -> str:
    """What two experiments share if they aren't independent blocks: their images, or their function."""
    objective, data = comparison.spec.get("objective"), comparison.spec.get("data")
    if isinstance(objective, Mapping):
        # One function may serve many problems, which its fixed values choose.
        fixed = comparison.spec.get("fixed")
        chosen = {k: v for k, v in fixed.items() if k != "epochs"} if isinstance(fixed, Mapping) else {}
        return in_line({"name": objective.get("function"), **chosen})
    if isinstance(data, Mapping):
        # The folder tells data apart only where it says what they are.
        folder = data.get("root") if data.get("name") == "image_folder" else None
        return in_line({"name": data.get("name"), "root": folder})
    return str(data)


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
    return Block(
        experiment=comparison.experiment,
        data=data_of(comparison),
        metric=comparison.metric,
        is_function=comparison.is_function,
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
    lowest = min(ranks.average_ranks)
    best = [m for m, rank in zip(methods, ranks.average_ranks, strict=True) if rank == lowest]
    said = [f"Lowest average rank over {blocks} experiments: {', '.join(best)}, {lowest:.2f}."]
    if blocks < BLOCKS_FOR_RANKS:
        said.append(
            f"Too few experiments for a test of ranks: {blocks}, where {BLOCKS_FOR_RANKS} are the least; "
            "none is made, and no method is named the winner."
        )
    elif ranks.critical_difference is not None:
        said.append(_told_apart(methods, ranks, ranks.critical_difference))
    if repeated:
        said.append(
            f"Experiments on the same data are not independent, so that no test over them is made: "
            f"{', '.join(repeated)}."
        )
    return " ".join(said)


def _told_apart(methods: tuple[str, ...], ranks: RankComparison, difference: float) -> str:
    """Which methods differ: by Nemenyi's test, if Friedman's says that any do (Demšar 2006)."""
    friedman = ranks.friedman_p
    all_alike = "" if friedman is None else f"Friedman's test that all rank alike: {_p(friedman)}"
    if friedman is not None and friedman >= ranks.alpha:
        return f"{all_alike}: no method is told apart from another."
    order = sorted(zip(ranks.average_ranks, methods, strict=True))
    pairs = [
        f"{a} from {b}" for (low, a), (high, b) in itertools.combinations(order, 2) if high - low > difference
    ]
    nemenyi = f"Nemenyi's test at alpha {ranks.alpha:g} (ranks further apart than {difference:.2f})"
    said = f"{nemenyi} tells apart {'; '.join(pairs)}." if pairs else f"{nemenyi} tells no methods apart."
    return f"{all_alike}. {said}" if all_alike else said


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def outcome_in_words(across: Across) -> str:
    """What scores are; functions have neither validation nor test images."""
    images = not any(block.is_function for block in across.blocks)
    if across.outcome == "retrained":
        return "test, retrained" if images else "winners, retrained"
    return "validation, in the search" if images else "best in the search"


def across_table(across: Across) -> Table:
    """T11: average rank and regret per method, and its score in each experiment."""
    ranks = dict(
        zip(across.methods, () if across.ranks is None else across.ranks.average_ranks, strict=False)
    )
    return Table(
        key="across",
        title="Several experiments together",
        caption=(
            f"Average rank (1 is best), mean normalised regret over {len(across.blocks)} experiments, and "
            f"each method's mean over replicates ({outcome_in_words(across)})."
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
