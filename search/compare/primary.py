"""What the declared comparison is about: retrained scores of winners, or best values in the search.

- Winners are ranked by their retrained scores as soon as there are any, for values of the search
  flatter. A winner counts with the seeds that finished, if they are at least as many as the file
  declared (`comparison.retrain.at_least`, or all seeds if those are fewer); a study whose winner has
  fewer is left out by name. Pairs are compared on the replicates that both methods have.
- While the experiment runs, more will come: then search-time values stand in until every winner has
  enough seeds.
- Winners of whole studies are chosen among as many trials as each study had. The report says how
  many of them were found beyond the budget that all studies spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from search.compare.base import Comparison, Retrainings
from search.compare.budgets import Axis
from search.compare.headline import StudyResult
from search.experiment.settings import RetrainSettings

OutcomeKind: TypeAlias = Literal["retrained", "searched"]

MOST_NAMED = 6
"""Studies that a sentence names; more are counted, and `report.json` has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """A winner that was not retrained with all seeds."""

    study: str
    seeds: int
    """Those that finished."""
    failed: int
    """Retrainings of the study that failed for good."""

    def __str__(self) -> str:
        """`digits/tpe/3 (9, 1 failed)`."""
        return f"{self.study} ({self.seeds}{f', {self.failed} failed' if self.failed else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The outcome that the declared comparison is about."""

    kind: OutcomeKind
    axis: Axis
    """What the budget below is counted in."""
    budget: float | None
    """At which budget values are taken; None: of whole studies, or nothing has been spent."""
    values: Mapping[str, Mapping[int, float]]
    """Method → replicate → value, in the metric's own unit; every method, some without a value."""
    missing: tuple[str, ...]
    """Names of counted studies without a value."""
    retrained: int
    """Counted studies whose incumbent has been retrained with all seeds."""
    ranked: int
    """Counted studies whose incumbent has been retrained with at least `needed` seeds."""
    needed: int
    """Seeds with which a winner counts; 0 where none is to be retrained."""
    to_retrain: int
    """Counted studies that have an incumbent."""
    lacking: tuple[Lacking, ...]
    """Their winners that were not retrained with all seeds; none if the file asks for no retraining."""
    common: float | None
    """The budget that all counted studies have spent, whatever values are compared."""
    beyond: tuple[str, ...]
    """Ranked studies whose winner was found after that budget; none where search-time values are compared."""
    title: str
    """What the values are, in a few words, for headings and axes."""
    text: str
    """How they came about, in a few sentences."""

    @property
    def left_out(self) -> tuple[Lacking, ...]:
        """Winners that don't count, for they have too few seeds."""
        return tuple(one for one in self.lacking if one.seeds < self.needed)


def budget_axis(declared: Axis, pruner: str) -> Axis:
    """The axis of the primary equal budget.

    As declared, but for the default: epochs stands for trials where nothing is pruned. Without
    pruning every trial is trained to its end, and equal trials are equal efforts; equal epochs
    would cut every other study where one study's trials diverged early.
    """
    return "trials" if declared == "epochs" and pruner == "none" else declared


def primary(
    studies: Sequence[StudyResult],
    comparison: Comparison,
    axis: Axis,
    budget: float | None,
    *,
    retrain: RetrainSettings,
    worst: float | None,
) -> Primary:
    """The outcome to compare (see the top of this file); `budget`: the common one."""
    counted = [study for study in studies if study.counted]
    winners = [study for study in counted if study.incumbent is not None]
    needed = max(1, min(retrain.at_least, retrain.seeds))
    ranked = [study for study in winners if _seeds(study) >= needed]
    retrained = bool(ranked) and (len(ranked) == len(winners) or comparison.state not in GOING_ON)
    values: dict[str, dict[int, float]] = {method: {} for method in comparison.methods}
    # Where everything diverged there is nothing to compare, and least of all to call equivalent.
    for study in counted if winners else []:
        value = _score(study, needed, worst) if retrained else study.at_budget
        if value is not None:
            values[study.method][study.replicate] = value
    lacking = _lacking(winners, comparison.retrainings, retrain.seeds)
    done = sum(_seeds(study) >= max(1, retrain.seeds) for study in winners)
    beyond = tuple(s.study.name for s in ranked if s.at_budget != s.searched) if retrained else ()
    found = Primary(
        kind="retrained" if retrained else "searched",
        axis=axis,
        budget=None if retrained else budget,
        values=values,
        missing=tuple(s.study.name for s in counted if s.replicate not in values[s.method]),
        retrained=done,
        ranked=len(ranked),
        needed=needed if retrain.seeds else 0,
        to_retrain=len(winners),
        lacking=lacking,
        common=budget,
        beyond=beyond if budget is not None else (),
        title=(
            f"{comparison.scored} of retrained winners"
            if retrained
            else f"best {comparison.judged} in the search"
        ),
        text="",
    )
    said = _trained_again if retrained else _selected
    return replace(found, text=said(found, comparison, retrain.seeds))


GOING_ON = frozenset({"created", "running"})
"""States of an experiment that is at work, so that more retrainings will come."""


def _seeds(study: StudyResult) -> int:
    return 0 if study.retrained is None else len(study.retrained.seeds)


def _score(study: StudyResult, needed: int, worst: float | None) -> float | None:
    """The retrained score; a study whose trials all diverged has none, and is worth the worst value."""
    if study.retrained is not None:
        return study.retrained.test_mean if _seeds(study) >= needed else None
    return worst if study.incumbent is None and study.searched is not None else None


def _lacking(
    winners: Sequence[StudyResult], retrainings: Mapping[str, Retrainings], seeds: int
) -> tuple[Lacking, ...]:
    return tuple(
        Lacking(
            study=(name := study.study.name),
            seeds=_seeds(study),
            failed=retrainings.get(name, Retrainings()).failed,
        )
        for study in winners
        if _seeds(study) < seeds
    )


_SPENT: dict[Axis, str] = {
    "trials": "{:g} trials",
    "epochs": "{:,.0f} epochs",
    "seconds": "{:,.4g} device and sampler seconds",
}


def in_words(axis: Axis, amount: float) -> str:
    """`60 trials`, `1,200 epochs`: an amount of one budget."""
    return _SPENT[axis].format(amount)


def named(names: Sequence[object]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - MOST_NAMED
    shown = ", ".join(map(str, names[:MOST_NAMED]))
    return f"{shown} and {more} more" if more > 0 else shown


def _trained_again(found: Primary, comparison: Comparison, seeds: int) -> str:
    fresh = "1 fresh seed" if seeds <= 1 else f"{seeds} fresh seeds"
    where = "" if comparison.is_function else " and scored on the sealed test set"
    said = [
        f"Each study's winner was trained again with {fresh}{where}; a study counts with the mean over them."
    ]
    if found.lacking:
        said.append(lacking_in_words(found, seeds))
    if found.beyond:
        said.append(beyond_in_words(found, names=False))
    return " ".join(said)


def lacking_in_words(found: Primary, seeds: int) -> str:
    """How many winners have all seeds, which count with fewer, and which are left out."""
    fewer = [one for one in found.lacking if one.seeds >= found.needed]
    said = [f"All {seeds} seeds finished for {found.retrained} of {found.to_retrain} winners."]
    if fewer:
        said.append(f"With those that finished, at least {found.needed}, count: {named(fewer)}.")
    if found.left_out:
        said.append(f"Left out, with fewer than {found.needed}: {named(found.left_out)}.")
    return " ".join(said)


def beyond_in_words(found: Primary, *, names: bool = True) -> str:
    """How many winners a study found after the budget that all spent, and which."""
    assert found.common is not None
    return (
        f"Winners come of whole studies, which are not all equally long: {len(found.beyond)} of "
        f"{found.ranked} were found after the {in_words(found.axis, found.common)} that all studies have"
        f"{f': {named(found.beyond)}' if names else ''}."
    )


def _selected(found: Primary, comparison: Comparison, seeds: int) -> str:
    if not found.to_retrain or found.budget is None:
        return "No study has a trial that was trained to its end without diverging."
    return (
        f"Each study counts with its best {comparison.judged} after {in_words(found.axis, found.budget)}, "
        "the largest budget that all of them spent. It was selected among many values, so it flatters every "
        f"method: {_why(found, seeds)}."
    )


def _why(found: Primary, seeds: int) -> str:
    if seeds == 0:
        return "the file asks for no retraining"
    if found.ranked:
        return f"only {found.ranked} of {found.to_retrain} winners have been retrained"
    if any(one.seeds for one in found.lacking):
        return f"no winner has been retrained with {found.needed} seeds"
    return "winners have not been retrained"
