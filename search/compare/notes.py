"""What a reader must know before believing the numbers of a report, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.evidence import few_replicates, few_trials

if TYPE_CHECKING:
    from search.compare.base import Comparison
    from search.compare.summary import MethodSummary, StudySummary

UNEQUAL_BUDGETS = 1.1
"""Ratio of epochs spent per study between methods above which the report points it out."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a reader must know before believing a number; `kind` is stable, `text` is prose."""

    kind: str
    text: str


def notes(
    comparison: Comparison,
    methods: Sequence[MethodSummary],
    studies: Sequence[StudySummary],
    common: int | None,
) -> tuple[Note, ...]:
    """What a reader must know before believing the numbers, the gravest first."""
    found: list[Note] = []
    waiting = sum(study.counts.waiting for study in studies)
    open_trials = waiting + sum(study.counts.running for study in studies)
    if comparison.state == "finished" and open_trials == waiting > 0:
        found.append(
            Note(
                "trials_not_begun",
                f"Trials that were queued and never begun: {waiting}. The budget of epochs was spent before "
                "their turn, or they were queued after the end.",
            )
        )
    elif comparison.state != "finished" or open_trials:
        done = sum(study.counts.finished for study in studies)
        found.append(
            Note(
                "provisional",
                f"The experiment is {comparison.state}: trials finished: {done}, waiting or running: "
                f"{open_trials}. All numbers are provisional.",
            )
        )
    empty = [method.method for method in methods if method.best is None]
    if empty:
        found.append(
            Note(
                "no_completed_trial",
                f"No trial was trained to its end for: {', '.join(empty)}. No best value.",
            )
        )
    if methods and (said := few_replicates(comparison.replicates)):
        found.append(Note("too_few_replicates", _sentence(said)))
    fewest = min((study.counts.finished for study in studies), default=0)
    if studies and (said := few_trials(fewest)):
        found.append(Note("demonstration", _sentence(said)))
    found.extend(_budget_notes(methods, common))
    failed = sum(method.counts.failed for method in methods)
    if failed:
        found.append(Note("failed_trials", f"{failed} trials failed; 'shoal trials' shows their reasons."))
    if any(method.best for method in methods):
        found.append(
            Note(
                "selection",
                "A best validation value was selected among many trials, so it flatters every method. "
                "'shoal score' retrains the best config once and scores it on the sealed test set.",
            )
        )
    return tuple(found)


def _budget_notes(methods: Sequence[MethodSummary], common: int | None) -> list[Note]:
    """Whether the methods spent the same, on the axes of trials and epochs."""
    found = []
    trials = {m.method: m.counts.finished / m.replicates for m in methods if m.replicates}
    epochs = {m.method: m.epochs / m.replicates for m in methods if m.replicates}
    if trials and min(trials.values()) > 0 and max(trials.values()) > min(trials.values()):
        found.append(Note("unequal_trials", f"Finished trials per study differ: {_listed(trials)}."))
    spread = min(epochs.values(), default=0)
    if common is not None and spread > 0 and max(epochs.values()) > UNEQUAL_BUDGETS * spread:
        found.append(
            Note(
                "unequal_epochs",
                f"Epochs spent per study differ: {_listed(epochs)}. "
                f"The values at equal epochs are those after {common} epochs, which every study spent.",
            )
        )
    return found


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:.4g}" for name, amount in amounts.items())


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."
