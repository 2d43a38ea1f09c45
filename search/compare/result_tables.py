"""Tables of what was found: T3 headline, T4 pairs, T5 equal budgets, T6 efficiency, and beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from search.compare import cells
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.budgets import Axis
from search.compare.cells import left, right
from search.compare.cuts import MethodCut
from search.compare.pairs import PairFinding
from search.compare.statistics.expected_best import coverage
from search.compare.statistics.verdict import Rules, Verdict
from search.compare.tables import Cell, Table

Row: TypeAlias = tuple[Cell, ...]

VERDICTS: dict[Verdict, str] = {
    "too_few": "too few replicates for a claim",
    "meaningful": "better, meaningful",
    "not_meaningful": "better, not meaningful",
    "weak": "better by the test, weak",
    "negligible": "better, by less than matters",
    "equivalent": "equivalent",
    "no_difference": "no difference found",
}
"""A verdict in a table's cell; where a method is better, its name stands before it."""

GOOD_SHARE = 0.05
"""The share of the space that the table of random search calls good."""


def headline(comparison: Comparison, analysis: Analysis) -> Table:
    """T3: one row per method."""
    rows = []
    for method in analysis.methods:
        score, bias = method.score, method.selection_bias
        rows.append(
            (
                cells.text(method.method),
                cells.count(0 if score is None else score.n),
                cells.median(score),
                cells.EMPTY if score is None or score.n == 1 else cells.quartiles(score),
                cells.EMPTY if score is None or score.n == 1 else cells.number(score.interquartile_mean),
                cells.number(None if score is None else score.mean.estimate),
                cells.ends(None if score is None else score.mean),
                cells.number(None if score is None else score.best),
                cells.number(None if score is None else score.worst),
                cells.median(method.searched),
                cells.difference(None if bias is None else bias.mean, analysis.rules.scale)[0],
            )
        )
    unit = analysis.rules.unit
    return Table(
        key="headline",
        title=f"{analysis.primary.title[0].upper()}{analysis.primary.title[1:]}",
        caption=(
            f"{analysis.primary.text} {_over(len(analysis.replicates))} IQM: the mean of the middle half. "
            f"Selection bias: the winner's {comparison.judged} in the search less the mean of the same when "
            "retrained"
            f"{', turned' if comparison.direction == 'minimize' else ''}; positive flatters."
        ),
        columns=(
            left("method", "method"),
            right("n", "replicates"),
            right("median", "median"),
            right("quartiles", "middle half"),
            right("interquartile_mean", "IQM"),
            right("mean", "mean"),
            right("mean_interval", "95 % interval"),
            right("best", "best"),
            right("worst", "worst"),
            right("searched", "best in the search (median)"),
            right("selection_bias", f"selection bias{f' ({unit})' if unit else ''}"),
        ),
        rows=tuple(rows),
    )


def _over(replicates: int) -> str:
    if replicates == 1:
        return "One replicate, so without intervals."
    return f"Over {replicates} replicates, from which intervals are bootstrapped."


def pairs(comparison: Comparison, analysis: Analysis) -> Table:
    """T4: the declared pairs."""
    rules = analysis.rules
    found = [pair for pair in analysis.pairs if pair.declared]
    tested = max((pair.result.pairs_tested for pair in found), default=0)
    test = (
        f"p: Wilcoxon's signed-rank test over replicates, two-sided; Holm's correction over {tested} "
        f"pair{'' if tested == 1 else 's'}, alpha {rules.alpha:g}."
        if tested
        else "Too few replicates for a test: no p-value."
    )
    return _pair_table(
        "pairs",
        "Pairs of methods, declared before the run",
        f"Difference: the first method less the second in {analysis.primary.title}, turned so that positive "
        f"favours the first. {test}",
        found,
        rules,
        function=comparison.is_function,
    )


def exploratory_pairs(comparison: Comparison, analysis: Analysis) -> Table:
    """Pairs and outcomes that were not declared."""
    return _pair_table(
        "pairs-exploratory",
        "Other pairs and outcomes",
        "Not declared before the run: hints, not findings. Columns as in the table of declared pairs; Holm's "
        "correction is taken over the pairs of one outcome in this table.",
        [pair for pair in analysis.pairs if not pair.declared],
        analysis.rules,
        function=comparison.is_function,
        exploratory=True,
    )


def _pair_table(
    key: str,
    title: str,
    caption: str,
    found: Sequence[PairFinding],
    rules: Rules,
    *,
    function: bool,
    exploratory: bool = False,
) -> Table:
    unit = f" ({rules.unit})" if rules.unit else ""
    outcomes = {"retrained": "test, retrained", "searched": "validation, in the search"}
    if function:
        outcomes = {"retrained": "retrained", "searched": "in the search"}
    return Table(
        key=key,
        title=title,
        caption=caption,
        columns=(
            left("pair", "pair"),
            left("outcome", "outcome"),
            right("replicates", "replicates"),
            right("difference", f"mean difference{unit}"),
            right("difference_interval", "95 % interval"),
            right("superiority", "P(first better)"),
            right("superiority_interval", "95 % interval"),
            right("p", "p"),
            right("holm_p", "p (Holm)"),
            left("verdict", "verdict"),
        ),
        rows=tuple(
            (
                cells.text(pair.name),
                cells.text(outcomes[pair.outcome]),
                cells.count((result := pair.result).replicates),
                *cells.difference(result.difference, rules.scale),
                cells.probability(result.superiority),
                cells.probability_ends(result.superiority),
                cells.p_value(None if result.test is None else result.test.p_value),
                cells.p_value(result.holm_p),
                Cell(result.verdict, verdict_text(pair)),
            )
            for pair in found
        ),
        exploratory=exploratory,
    )


def verdict_text(pair: PairFinding) -> str:
    """The verdict in a few words."""
    said = VERDICTS[pair.result.verdict]
    return said if pair.result.better is None else f"{pair.result.better} {said}"


def cuts(comparison: Comparison, analysis: Analysis) -> Table:
    """T5: one row per budget and share of it, one column per method."""
    by_place: dict[tuple[Axis, float], dict[str, MethodCut]] = {}
    for budget in analysis.cuts:
        for cut in budget.cuts:
            by_place.setdefault((budget.axis, cut.fraction), {})[cut.method] = cut
    wanted = len(analysis.replicates)
    rows = []
    for (axis, fraction), of_method in by_place.items():
        position = next(iter(of_method.values())).position
        rows.append(
            (
                cells.text(axis),
                Cell(fraction, f"{100 * fraction:g} %"),
                # Half a trial is none: the curve's value is that after the whole ones.
                cells.number(position if axis == "seconds" else math.floor(position)),
                *(
                    cells.median_and_quartiles(of_method[method].values, wanted)
                    for method in comparison.methods
                ),
            )
        )
    return Table(
        key="cuts",
        title="Equal budgets",
        caption=(
            f"Best {comparison.judged} so far"
            f"{'' if wanted == 1 else f', median [middle half] over {wanted} replicates'}, at "
            "shares of the largest budget that every study spent. Pruned and diverged trials count in full; "
            "seconds are the device's and the sampler's."
        ),
        columns=(
            left("axis", "budget"),
            right("share", "share"),
            right("spent", "spent"),
            *(right(f"method.{method}", method) for method in comparison.methods),
        ),
        rows=tuple(rows),
        exploratory=True,
    )


def efficiency(comparison: Comparison, analysis: Analysis) -> Table:
    """T6: one row per budget and method."""
    found = analysis.efficiency
    target = "" if found.target is None else f" Target: {cells.number(found.target).text}."
    rows: list[Row] = [
        (
            cells.text(axis.axis),
            cells.text(method.method),
            Cell(method.success.estimate, f"{method.times.successes} of {method.times.n}"),
            cells.censored(method.expected_running_time, axis.budget * method.times.n),
            cells.censored(method.survival.median, axis.budget),
            *cells.speed_up(method.speed_up),
        )
        for axis in found.axes
        for method in axis.methods
    ]
    return Table(
        key="efficiency",
        title="How soon the target is reached",
        caption=(
            f"{found.text}{target} Expected: budget spent by all replicates per success. Median: Kaplan and "
            "Meier's; > where fewer than half reached it. Speed-up: random search's budget for the same "
            f"median {comparison.metric}, over the method's, at the final median of whichever of the two "
            "ended worse; at least or at most so much where the first value was already as good."
        ),
        columns=(
            left("axis", "budget"),
            left("method", "method"),
            right("reached", "reached"),
            right("expected", "expected"),
            right("median", "median"),
            right("speed_up", "speed-up over random"),
            right("speed_up_interval", "95 % interval"),
        ),
        rows=tuple(rows),
        exploratory=True,
    )


def regret(comparison: Comparison, analysis: Analysis) -> Table:
    """Distance to the best value that any study found."""
    found = analysis.regret
    rows: list[Row] = [
        (
            cells.text(method.method),
            cells.count(method.regret.n),
            cells.median(method.regret),
            cells.quartiles(method.regret),
            cells.median(method.normalised),
            cells.quartiles(method.normalised),
        )
        for method in (() if found is None else found.methods)
    ]
    best = "" if found is None else f" ({cells.number(found.best_known).text})"
    return Table(
        key="regret",
        title="Distance to the best value known",
        caption=(
            f"From the best {comparison.judged} of any study{best} to that of each whole study, "
            "over replicates. Normalised: over the distance of a median random trial, so that 1 is a typical "
            "random trial."
        ),
        columns=(
            left("method", "method"),
            right("n", "replicates"),
            right("regret", "regret (median)"),
            right("regret_quartiles", "middle half"),
            right("normalised", "normalised (median)"),
            right("normalised_quartiles", "middle half"),
        ),
        rows=tuple(rows),
        exploratory=True,
    )


def expected_best(comparison: Comparison, analysis: Analysis) -> Table:
    """What shorter random searches would have found."""
    found = analysis.expected_best
    return Table(
        key="expected-best",
        title="What random search of another length finds",
        caption=(
            f"Expected best {comparison.judged} of n random trials, from "
            f"{0 if found is None else found.trials} per replicate (Tang et al. 2020), mean over replicates; "
            "and the chance that n trials hold one of the best twentieth of the space."
        ),
        columns=(
            right("trials", "n"),
            right("expected", "expected best"),
            right("coverage", "chance of the best 5 %"),
        ),
        rows=()
        if found is None
        else tuple(
            (
                cells.count(n),
                cells.number(float(found.values[n - 1])),
                Cell(chance := coverage(n, GOOD_SHARE), f"{chance:.2f}"),
            )
            for n in found.checkpoints
        ),
        exploratory=True,
    )
