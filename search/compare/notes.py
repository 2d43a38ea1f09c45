"""What a reader must know before believing the numbers of a report, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.compare.primary import beyond_in_words, lacking_in_words
from search.evidence import few_replicates, few_trials

if TYPE_CHECKING:
    from search.compare.base import Comparison
    from search.compare.outcomes import MethodOutcomes
    from search.compare.primary import Primary

UNEQUAL_BUDGETS = 1.1
"""Ratio of epochs spent per study between methods above which the report points it out."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a reader must know before believing a number; `kind` is stable, `text` is prose."""

    kind: str
    text: str


def notes(
    comparison: Comparison,
    primary: Primary,
    outcomes: Sequence[MethodOutcomes],
    replicates: Sequence[int],
    *,
    fewest_trials: int,
    seeds: int,
) -> tuple[Note, ...]:
    """What a reader must know before believing the numbers, the gravest first.

    `fewest_trials`: of the smallest counted study; `seeds`: with how many winners were to be retrained.
    """
    found: list[Note] = [*_progress_notes(comparison, outcomes, replicates)]
    left_out = {one.study for one in primary.left_out} if primary.kind == "retrained" else set()
    missing = [name for name in primary.missing if name not in left_out]
    empty = [
        method
        for method, values in primary.values.items()
        if not values and not any(study.name in left_out for study in comparison.studies_of(method))
    ]
    if empty:
        found.append(
            Note(
                "no_completed_trial",
                f"No trial was trained to its end without diverging for: {', '.join(empty)}. No best value.",
            )
        )
    elif missing:
        found.append(Note("studies_without_value", f"Studies without a value: {', '.join(missing)}."))
    if outcomes and (said := few_replicates(len(replicates))):
        found.append(Note("too_few_replicates", _sentence(said)))
    if comparison.studies and (said := few_trials(fewest_trials)):
        found.append(Note("demonstration", _sentence(said)))
    found.extend(_budget_notes(comparison, outcomes))
    failed = sum(method.counts.failed for method in outcomes)
    if failed:
        found.append(Note("failed_trials", f"{failed} trials failed; 'shoal trials' shows their reasons."))
    found.extend(_selection_notes(primary, comparison.judged, seeds))
    return tuple(found)


def _progress_notes(
    comparison: Comparison, outcomes: Sequence[MethodOutcomes], replicates: Sequence[int]
) -> list[Note]:
    """Whether the experiment has ended, and what it left out."""
    waiting = sum(method.counts.waiting for method in outcomes)
    open_trials = waiting + sum(method.counts.running for method in outcomes)
    if comparison.state == "finished" and open_trials == waiting > 0:
        return [
            Note(
                "trials_not_begun",
                f"Trials that were queued and never begun: {waiting}. The budget of epochs was spent before "
                "their turn, or they were queued after the end.",
            )
        ]
    if comparison.state == "finished" and not open_trials:
        return []
    done = sum(method.counts.finished for method in outcomes)
    whole = ""
    if len(replicates) < comparison.replicates:
        whole = f" Compared are the replicates that are whole: {len(replicates)} of {comparison.replicates}."
    return [
        Note(
            "provisional",
            f"The experiment is {comparison.state}: trials finished: {done}, waiting or running: "
            f"{open_trials}. All numbers are provisional.{whole}",
        )
    ]


def _selection_notes(primary: Primary, judged: str, seeds: int) -> list[Note]:
    """What the primary outcome hides."""
    if primary.kind == "retrained":
        found = []
        if primary.lacking:
            found.append(Note("retraining_incomplete", lacking_in_words(primary, seeds)))
        if primary.beyond:
            found.append(Note("winners_beyond_budget", beyond_in_words(primary)))
        return found
    if not any(primary.values.values()):
        return []
    if seeds and any(one.seeds for one in primary.lacking):
        until = "Until all have" if primary.ranked else "As long as none has"
        return [
            Note(
                "retraining_unfinished",
                f"Winners retrained with at least {primary.needed} seeds: {primary.ranked} of "
                f"{primary.to_retrain}. {until}, the best {judged} in the search is compared, which "
                "flatters every method.",
            )
        ]
    return [
        Note(
            "selection",
            f"A best {judged} was selected among many trials, so it flatters every method; no winner has "
            "been retrained.",
        )
    ]


def _budget_notes(comparison: Comparison, outcomes: Sequence[MethodOutcomes]) -> list[Note]:
    """Whether the methods spent the same, on the axes of trials and epochs."""
    found = []
    studies = {m.method: len(comparison.studies_of(m.method)) for m in outcomes}
    trials = {m.method: (m.counts.finished - m.counts.failed) / studies[m.method] for m in outcomes}
    epochs = {m.method: m.epochs / studies[m.method] for m in outcomes}
    if trials and min(trials.values()) > 0 and max(trials.values()) > min(trials.values()):
        found.append(Note("unequal_trials", f"Finished trials per study differ: {_listed(trials)}."))
    least = min(epochs.values(), default=0)
    if least > 0 and max(epochs.values()) > UNEQUAL_BUDGETS * least:
        found.append(
            Note(
                "unequal_epochs",
                f"Epochs spent per study differ: {_listed(epochs)}. Values at equal budgets stand in a table "
                "of their own.",
            )
        )
    return found


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:.4g}" for name, amount in amounts.items())


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."
