"""How a trial ends, as the ledger is told: functions of what an engine reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.ledger import Ending, ReadingWrite

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from search.trials.claims import Claim, Reported
    from storage.ledger import Lease, Scalar

SHARED_WITH_KEY = "shoal:shared_with"
"""User attribute of a trial: the study whose trial was trained for this one as well."""
SHARED_EPOCHS_KEY = "shoal:shared_epochs"
"""How many epochs this one did not train for it; those of the attempts after which it paused or ended."""

NOT_SCORED = "its trainer gave no score on the test set"
"""Why a retraining failed: an engine of the user's own does not do what `TrialStart.score_test` asks."""


def value_of(spec: ExperimentSpec, one: Reported) -> float:
    """What a trial is worth after an epoch."""
    return float(one.report.metrics[spec.metric])


def completed(spec: ExperimentSpec, one: Reported) -> Ending:
    """The end of a trial that has nothing left to train; of a retraining, with what it read."""
    epoch = one.report.epoch
    notes: dict[str, Scalar] = {"epochs": epoch, **_shared(one.claim)}
    if one.report.diverged:
        notes |= {"diverged": True, "diverged_epoch": epoch}
    if one.claim.retrains is not None and one.test is None:
        return Ending(
            lease=one.claim.lease, state="failed", reason=NOT_SCORED, attributes={"reason": NOT_SCORED}
        )
    return Ending(
        lease=one.claim.lease,
        state="complete",
        value=value_of(spec, one),
        attributes=notes,
        reading=_reading(spec, one),
    )


def pruned(one: Reported) -> Ending:
    """The end of a trial that was stopped early."""
    notes: dict[str, Scalar] = {"epochs": one.report.epoch, **_shared(one.claim)}
    return Ending(lease=one.claim.lease, state="pruned", attributes=notes)


def paused(one: Reported) -> Ending:
    """A trial that rests at a rung: it goes back to the queue."""
    return Ending(lease=one.claim.lease, state="released", attributes=_shared(one.claim))


def never_promoted(lease: Lease) -> Ending:
    """The end of a trial that rests at a rung, in a study that will promote none any more."""
    return Ending(lease=lease, state="pruned", attributes={"epochs": lease.last_step or 0})


def _shared(claim: Claim) -> dict[str, Scalar]:
    if claim.shared is None:
        return {}
    before = claim.lease.attributes.get(SHARED_EPOCHS_KEY, 0)  # of a trial that has paused
    return {SHARED_WITH_KEY: claim.shared.study_name, SHARED_EPOCHS_KEY: before + claim.shared.epochs}


def _reading(spec: ExperimentSpec, one: Reported) -> ReadingWrite | None:
    """What a retraining read of the test set, for the log; None for a trial of a search."""
    retrains, test, start = one.claim.retrains, one.test, one.claim.start
    if retrains is None or test is None:
        return None
    return ReadingWrite(
        study_name=retrains.study_name,
        trial_id=retrains.trial_id,
        trial_number=retrains.trial_number,
        config={**spec.constants(), **one.claim.values, "epochs": start.config.epochs},
        seed=start.seed,
        metrics=test.metrics,
        validation=test.validation or one.report.metrics,
        epochs=test.epochs,
        images=test.images,
        seconds=test.seconds,
    )
