"""The verdict in words, at the top of the report, and what it doesn't show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from search.compare.base import Comparison
from search.compare.execution import most_in_flight
from search.compare.pairs import PairFinding
from search.compare.primary import Primary, in_words
from search.compare.statistics import wording
from search.compare.statistics.base import Interval
from search.compare.statistics.verdict import PairResult, Rules
from search.evidence import few_replicates, few_trials
from search.experiment.settings import METHODS

MOST_IN_FLIGHT = 4
"""With more trials of a study at once an adaptive method loses much of its advantage: P(TPE better
than random) was measured to fall from 0.95 at one to 0.72 at 32."""

MOST_NAMED = 6
"""Pairs without a difference that are named; more are counted: eight methods have 28 pairs."""


MOST_NUMBERS = 3
"""Of so many pairs without a difference the verdict tells the numbers; the table has them of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """Sentences made from the numbers."""

    verdict: str
    """One to a few sentences: what may be said of the declared pairs."""
    claims: bool
    """Whether any difference is claimed."""
    not_shown: tuple[str, ...]
    """What the comparison doesn't show, one sentence each."""


def conclude(
    comparison: Comparison,
    primary: Primary,
    pairs: Sequence[PairFinding],
    rules: Rules,
    *,
    replicates: int,
    fewest_trials: int,
    unequal_epochs: bool,
    retrained: int,
) -> Conclusion:
    """The conclusion from the declared pairs among `pairs`.

    `fewest_trials`: of the smallest counted study; `unequal_epochs`: methods spent different amounts;
    `retrained`: with how many fresh seeds winners were to be trained again.
    """
    declared = [pair.result for pair in pairs if pair.declared]
    going_on = comparison.state != "finished"
    said = _verdict(comparison, primary, declared, rules, replicates)
    claims = any(result.found for result in declared)
    frame = []
    if primary.kind == "searched" and primary.to_retrain and _tested(declared) and retrained:
        frame.append(
            f"This is about best values in the search: winners were to be ranked after {retrained} "
            f"retrainings each, and {primary.retrained} of {primary.to_retrain} have had them."
        )
    if going_on:
        frame.append("Provisional: the experiment has not ended, and looking early finds too much.")
    if declared and (small := few_trials(fewest_trials)):
        frame.append(f"{small[0].upper()}{small[1:]}.")
    return Conclusion(
        verdict=" ".join((said, *frame)),
        claims=claims,
        not_shown=tuple(
            _not_shown(comparison, primary, declared, fewest_trials, unequal_epochs=unequal_epochs)
        ),
    )


def _tested(declared: Sequence[PairResult]) -> bool:
    return any(result.verdict != "too_few" for result in declared)


def _verdict(
    comparison: Comparison, primary: Primary, declared: Sequence[PairResult], rules: Rules, replicates: int
) -> str:
    if not any(primary.values.values()):
        return "No trial has been trained to its end without diverging: there is nothing to compare."
    if len(comparison.methods) < 2:
        return f"Only {comparison.methods[0]} was run: nothing is compared."
    if not declared:
        return "No declared pair of methods was run: nothing is claimed."
    if all(result.verdict == "too_few" for result in declared):
        few = few_replicates(max(result.replicates for result in declared)) or few_replicates(replicates)
        return f"{few[0].upper()}{few[1:]}." if few else "No pair has enough replicates in common."
    silent = [result for result in declared if result.verdict == "no_difference"]
    said = [_sentence(result, rules) for result in declared if result.verdict != "no_difference"]
    if len(silent) > MOST_NAMED:
        said.append(
            f"In {len(silent)} of {len(declared)} pairs no difference was found; "
            "that is no evidence of equality."
        )
    elif silent:
        numbers = len(silent) <= MOST_NUMBERS
        names = (", nor between " if numbers else "; ").join(
            _apart(result, rules, numbers=numbers) for result in silent
        )
        said.append(f"No difference was found between {names}; that is no evidence of equality.")
    return " ".join(said)


def _apart(result: PairResult, rules: Rules, *, numbers: bool) -> str:
    """`tpe and random (+0.3 points, 95 % interval -0.9 to +1.3, p (Holm) = 0.557)`, first less second."""
    names = f"{result.first} and {result.second}"
    found = result.difference
    if not numbers or found is None or found.low is None or found.high is None:
        return names
    low, high = (wording.signed(end, found, rules.scale) for end in (found.low, found.high))
    amount = f"{wording.signed(found.estimate, found, rules.scale)} {rules.unit}".rstrip()
    said = f"{amount}, {100 * found.level:g} % interval {low} to {high}"
    if result.holm_p is not None:
        said += f", {wording.p_in_words(result.holm_p, 'p (Holm)')}"
    return f"{names} ({said})"


def _sentence(result: PairResult, rules: Rules) -> str:
    """A pair in one sentence."""
    a, b = result.first, result.second
    if result.better is not None and result.better == b:
        a, b = b, a
    margin = f"{rules.smallest_difference * rules.scale:.3g} {rules.unit}".rstrip()
    over = f"over {result.replicates} replicates"
    match result.verdict:
        case "too_few":
            return f"Of {a} and {b} nothing is claimed: too few replicates in common, {result.replicates}."
        case "meaningful":
            return f"{a} is better than {b} {over}{_amount(result, rules)}: a meaningful difference."
        case "not_meaningful":
            return (
                f"{a} is better than {b} {over}{_amount(result, rules)}, "
                "but not often enough to be meaningful."
            )
        case "weak":
            return f"{a} is better than {b} by the test {over}, but sizes and wins don't settle it."
        case "negligible":
            return f"{a} is better than {b} {over}, but by less than matters (± {margin})."
        case "equivalent":
            return f"{a} and {b} are equivalent within ± {margin} {over}."
        case "no_difference":
            return f"No difference was found between {a} and {b} {over}."


def _amount(result: PairResult, rules: Rules) -> str:
    difference, p = result.difference, result.superiority
    assert difference is not None
    assert p is not None
    share = p.estimate
    if result.better != result.first:
        share, difference = 1 - share, _turned(difference)
    amount = f"{wording.signed(abs(difference.estimate), difference, rules.scale)[1:]} {rules.unit}".rstrip()
    interval = wording.interval_in_words(difference, rules.scale)
    return f" by {amount} on average{interval}, with probability {share:.2f}"


def _turned(difference: Interval) -> Interval:
    """Of the second less the first."""
    low, high = (None if end is None else -end for end in (difference.high, difference.low))
    return replace(difference, estimate=-difference.estimate, low=low, high=high)


def _not_shown(
    comparison: Comparison,
    primary: Primary,
    declared: Sequence[PairResult],
    fewest_trials: int,
    *,
    unequal_epochs: bool,
) -> list[str]:
    said = []
    if comparison.state != "finished":
        said.append("The final result: trials are still open, or the experiment was stopped.")
    if any(result.verdict == "too_few" for result in declared):
        said.append(
            "Which method is better: fewer than 10 replicates can't carry that, whatever the numbers."
        )
    if any(result.verdict == "no_difference" for result in declared):
        said.append("That methods are equal: a difference that was not found may still be there.")
    if primary.kind == "searched" and any(primary.values.values()):
        said.append(
            "How good the winners are: their values were selected among many, and not all were trained again "
            f"with fresh seeds{'' if comparison.is_function else ' and scored on the test set'}."
        )
    late = primary.beyond if declared and primary.common is not None else ()
    # Of late winners the same is said, on the declared axis.
    said_below = late and primary.axis == "epochs"
    if primary.kind == "retrained" and unequal_epochs and declared and not said_below:
        said.append(
            "What winners are worth at equal epochs: before they were retrained, methods spent different "
            "amounts."
        )
    if late and primary.common is not None:
        said.append(
            f"What winners are worth at equal {primary.axis}: {len(primary.beyond)} of {primary.ranked} were "
            f"found after the {in_words(primary.axis, primary.common)} that all studies have."
        )
    if primary.kind == "retrained" and primary.left_out:
        said.append(
            f"What {len(primary.left_out)} of {primary.to_retrain} winners are worth: too few of their "
            "retrainings finished."
        )
    if declared and few_trials(fewest_trials):
        said.append("How the methods do in longer searches: Bayesian methods begin with random trials.")
    wide = [method for method in comparison.methods if _too_wide(comparison, method)]
    if wide:
        said.append(
            f"What {', '.join(wide)} can do with few trials at once: more than {MOST_IN_FLIGHT} of a study "
            "ran side by side, which costs an adaptive method most of its advantage."
        )
    if "grid" in comparison.methods and len(comparison.methods) > 1:
        said.append(
            "What another grid would have done: where its levels sit can decide whether a grid wins (the "
            "protocol says where they sat)."
        )
    said.append(
        "Anything about other data, models, search spaces, budgets or pruners: this is one experiment."
    )
    return said


def _too_wide(comparison: Comparison, method: str) -> bool:
    settings = comparison.spec.get("methods")
    own = settings.get(method) if isinstance(settings, Mapping) else None
    kind = METHODS.get(method)
    if kind is None or not kind.adaptive or not isinstance(own, Mapping):
        return False
    in_flight = own.get("in_flight", kind.model_fields["in_flight"].default)
    in_fact = most_in_flight(comparison, method)
    if in_fact is not None:
        return in_fact > MOST_IN_FLIGHT
    return in_flight is None or in_flight > MOST_IN_FLIGHT
