"""A pair's verdict as a paragraph with its numbers, for people who read no table."""

from __future__ import annotations

import math
from dataclasses import replace

from search.compare.statistics.base import Interval
from search.compare.statistics.power import promise
from search.compare.statistics.verdict import PairResult, Rules
from search.evidence import REPLICATES_FOR_A_CLAIM


def signed(value: float, interval: Interval, scale: float) -> str:
    """A difference with its sign, to the digits that its interval can bear: two of the interval's width."""
    if interval.low is None or interval.high is None or interval.high <= interval.low:
        return f"{value * scale + 0.0:+.3g}"
    width = (interval.high - interval.low) * scale
    decimals = min(6, max(0, 1 - math.floor(math.log10(width))))
    return f"{round(value * scale, decimals) + 0.0:+.{decimals}f}"


def paragraph(result: PairResult, rules: Rules, *, exploratory: bool = False) -> str:
    """One paragraph, its words chosen by the verdict. `exploratory` for a pair that wasn't declared."""
    said = {
        "too_few": _too_few,
        "meaningful": _meaningful,
        "not_meaningful": _not_meaningful,
        "weak": _weak,
        "negligible": _negligible,
        "equivalent": _equivalent,
        "no_difference": _no_difference,
    }[result.verdict](result, rules)
    return f"Exploratory, not declared before the run: {said}" if exploratory else said


def _too_few(result: PairResult, rules: Rules) -> str:
    names = f"{result.first} and {result.second}"
    if result.replicates == 0:
        return f"{names} have no replicate in common: nothing can be said of them."
    count = "1 replicate" if result.replicates == 1 else f"{result.replicates} replicates"
    assert result.difference is not None
    return (
        f"Too few replicates for a claim about {names}: {count}, and {REPLICATES_FOR_A_CLAIM} are needed. "
        f"Seen, without a claim: {_seen(result, rules)}. No p-value is given."
    )


def _meaningful(result: PairResult, rules: Rules) -> str:
    return (
        f"{_claim(result)}, and the difference is meaningful: {_numbers(result, rules)}. "
        f"The interval of that probability lies above 0.5 and reaches above {rules.meaningful:g}."
        f"{_size_note(result, rules)}"
    )


def _not_meaningful(result: PairResult, rules: Rules) -> str:
    return (
        f"{_claim(result)}, but not often enough to be meaningful: {_numbers(result, rules)}. "
        f"The interval of that probability lies above 0.5 and doesn't reach above {rules.meaningful:g}."
        f"{_size_note(result, rules)}"
    )


def _weak(result: PairResult, rules: Rules) -> str:
    return (
        f"A weak finding: {_claim(result)} by the test, but how often it wins, or the mean difference, "
        f"doesn't settle it: {_numbers(result, rules)}."
    )


def _negligible(result: PairResult, rules: Rules) -> str:
    return (
        f"{_claim(result)}, but by less than matters: {_numbers(result, rules)}. The whole interval of the "
        f"difference lies within ± {_margin(rules)}: equivalent for practical purposes."
    )


def _equivalent(result: PairResult, rules: Rules) -> str:
    return (
        f"{result.first} and {result.second} are equivalent within ± {_margin(rules)} at this budget: "
        f"{_numbers(result, rules)}. The whole interval of the difference is smaller than what matters."
    )


def _no_difference(result: PairResult, rules: Rules) -> str:
    able = promise(result.replicates, alpha=rules.alpha, power=rules.power, pairs=result.pairs_tested)
    could = (
        "So few replicates could find no difference after the correction."
        if able.superiority is None
        else f"So many replicates find a P of {able.superiority:.2f} or more with power {rules.power:g}."
    )
    return (
        f"No difference found between {result.first} and {result.second} at this budget: "
        f"{_numbers(result, rules)}. That isn't evidence that they are equal: the interval of the difference "
        f"isn't within ± {_margin(rules)}. {could}"
    )


def _claim(result: PairResult) -> str:
    worse = result.second if result.better == result.first else result.first
    return f"{result.better} is better than {worse} at this budget"


def _numbers(result: PairResult, rules: Rules) -> str:
    """The difference, how often one wins, and p."""
    assert result.test is not None
    assert result.holm_p is not None
    test = "Wilcoxon's signed-rank test" if result.test.test == "signed-rank" else "Mann–Whitney's test"
    over = "" if result.pairs_tested == 1 else f" after Holm's correction over {result.pairs_tested} pairs"
    p = f"{test} gives {p_in_words(result.holm_p)}{over}"
    return f"over {result.replicates} replicates, {_seen(result, rules)}; {p}"


def _seen(result: PairResult, rules: Rules) -> str:
    """Mean difference and P, from the view of the better method, or of the one ahead if none is."""
    difference, p, name, other = result.difference, result.superiority, result.first, result.second
    assert difference is not None
    assert p is not None
    if result.better == other or (result.better is None and difference.estimate < 0):
        difference, p, name, other = _negated(difference), p.complement(), other, name
    amount = f"{signed(difference.estimate, difference, rules.scale)} {rules.unit}".rstrip()
    advantage = f"{name}'s advantage over {other} is {amount}"
    if result.replicates == 1:
        return advantage
    advantage += f" on average{interval_in_words(difference, rules.scale)}"
    where = "in the same replicate" if result.paired else "in two independent runs"
    return (
        f"{advantage}, and {name} is the better one {where} "
        f"with probability {p.estimate:.2f}{_probability_interval(p)}"
    )


def _negated(interval: Interval) -> Interval:
    low = None if interval.high is None else -interval.high
    high = None if interval.low is None else -interval.low
    return replace(interval, estimate=-interval.estimate, low=low, high=high)


def interval_in_words(interval: Interval, scale: float) -> str:
    """` (95 % interval -0.9 to +1.3)`, of a difference; nothing without an interval."""
    if interval.low is None or interval.high is None:
        return ""
    low, high = (signed(end, interval, scale) for end in (interval.low, interval.high))
    return f" ({100 * interval.level:g} % interval {low} to {high})"


def _probability_interval(p: Interval) -> str:
    if p.low is None or p.high is None:
        return ""
    return f" ({100 * p.level:g} % interval {p.low:.2f} to {p.high:.2f})"


def _margin(rules: Rules) -> str:
    return f"{rules.smallest_difference * rules.scale:.3g} {rules.unit}".rstrip()


def p_in_words(p_value: float, name: str = "p") -> str:
    """`p = 0.012`, `p < 0.001`."""
    return f"{name} < 0.001" if p_value < 0.001 else f"{name} = {p_value:.3f}"


def _size_note(result: PairResult, rules: Rules) -> str:
    """Says so if a found difference may still be smaller than what matters."""
    difference = result.difference
    assert difference is not None
    if difference.low is None or difference.high is None:
        return ""
    nearest = max(0.0, difference.low, -difference.high)
    if nearest >= rules.smallest_difference:
        return f" All of the difference's interval is beyond the smallest that matters, {_margin(rules)}."
    return f" The difference may still be smaller than the smallest that matters, {_margin(rules)}."
