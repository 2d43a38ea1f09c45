"""What a plan says of the comparison: what is claimed, what the replicates can show, what winners cost."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from search.evidence import few_replicates, few_trials
from search.experiment.spec import ExperimentSpec
from search.formats import format_number_of

SEEDS_FOR_A_WINNER = 10
"""Fresh seeds after which a winner's mean is worth comparing."""
LARGE_SHARE = 0.1
"""A smallest difference of more than this share of the metric's range is likely a slip of the unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """The declared part of the comparison, with what so many replicates can find of it."""

    axis: str
    pairs: tuple[tuple[str, str], ...]
    alpha: float
    """Over all pairs together."""
    power: float
    smallest_difference: float
    detectable: float | None
    """The P(A better than B) that is found with this power; None: nothing is, however large."""
    detects: str
    """The same in a sentence."""
    replicates_needed: int
    """For P(A better than B) = `meaningful`, with the declared pairs, alpha and power."""
    meaningful: float
    retrainings: int
    """Winners of all studies, each with fresh seeds."""
    retraining_epochs: int
    """At most."""


def comparison_plan(spec: ExperimentSpec) -> ComparisonPlan | None:
    """None with a single method, which is compared with nothing. Imports scipy."""
    pairs = pairs_of(spec)
    if not pairs:
        return None
    from search.compare.statistics.power import promise, replicates_needed

    declared = spec.comparison
    found = promise(spec.replicates, alpha=declared.alpha, power=declared.power, pairs=len(pairs))
    needed = replicates_needed(
        declared.meaningful, alpha=declared.alpha, power=declared.power, pairs=len(pairs)
    )
    return ComparisonPlan(
        axis=declared.axis,
        pairs=pairs,
        alpha=declared.alpha,
        power=declared.power,
        smallest_difference=declared.smallest_difference,
        detectable=found.superiority,
        detects=found.text,
        replicates_needed=needed,
        meaningful=declared.meaningful,
        retrainings=retrainings(spec),
        retraining_epochs=retraining_epochs(spec),
    )


def retrainings(spec: ExperimentSpec) -> int:
    """Winners of all studies, each with fresh seeds."""
    return len(spec.methods) * spec.replicates * spec.comparison.retrain.seeds


def retraining_epochs(spec: ExperimentSpec) -> int:
    """The epochs of all retrainings, at most."""
    return retrainings(spec) * spec.max_epochs()


def pairs_of(spec: ExperimentSpec) -> tuple[tuple[str, str], ...]:
    """The pairs that are tested: those of the file, or all, a later method first as in the report."""
    if spec.comparison.pairs is not None:
        return spec.comparison.pairs
    return tuple((second, first) for first, second in itertools.combinations(spec.methods, 2))


def comparison_notes(spec: ExperimentSpec, grid_size: int | None) -> list[str]:
    """What a report on this file will call a demonstration, or too little for a claim."""
    trials = spec.budget.trials
    notes = [note for note in (few_trials(trials), few_replicates(spec.replicates)) if note]
    if grid_size is not None and grid_size < trials:
        notes.append(f"the grid has {grid_size} points, fewer than the {trials} trials of other methods")
    return notes + _few_seeds(spec) + _slips(spec)


def winner_notes(spec: ExperimentSpec) -> list[str]:
    """What the winners of a single method cost, which are retrained although nothing is compared."""
    if retrainings(spec) == 0:
        return []
    seeds, epochs = spec.comparison.retrain.seeds, retraining_epochs(spec)
    trials, most = format_number_of(retrainings(spec), "more trial"), format_number_of(epochs, "more epoch")
    where = "" if spec.objective is not None else " and scored on the sealed test set"
    fresh = format_number_of(seeds, "fresh seed")
    return [f"winners are trained again with {fresh}{where}: {trials}, {most} at most"]


def _few_seeds(spec: ExperimentSpec) -> list[str]:
    seeds = spec.comparison.retrain.seeds
    if seeds >= SEEDS_FOR_A_WINNER:
        return []
    given = format_number_of(seeds, "seed")
    counted = "winners are not retrained" if seeds == 0 else f"winners are retrained with {given}"
    return [f"{counted}, where {SEEDS_FOR_A_WINNER} are the least: their best values are partly luck"]


def _slips(spec: ExperimentSpec) -> list[str]:
    """Numbers that are allowed and seldom meant."""
    declared = spec.comparison
    if spec.objective is not None:
        if "smallest_difference" in declared.model_fields_set:
            return []
        said = f"{declared.smallest_difference:g}, the default for accuracy"
        return [f"comparison.smallest_difference is {said}: say what matters for {spec.metric}"]
    from search.experiment.check_methods import metric_width

    width = metric_width(spec.metric)
    if width is None or declared.smallest_difference <= LARGE_SHARE * width:
        return []
    share = declared.smallest_difference / width
    said = f"{declared.smallest_difference:g} is {share:.0%} of what {spec.metric} spans"
    return [f"comparison.smallest_difference {said}: 0.005 would be half a point of accuracy"]
