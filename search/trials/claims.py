"""What a worker, its desk and its broker say to each other: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objectives.base import EpochReport, TestScore, TrialStart
    from objectives.checkpoint_files import TrialFolder
    from search.experiment.spec import ExperimentSpec
    from search.trials.retraining import Retrains
    from storage.ledger import Lease


class Verdict(Enum):
    """What becomes of a trial after an epoch. All but CONTINUE free its slot."""

    CONTINUE = "continue"
    PRUNE = "prune"
    FINISH = "finish"
    PAUSE = "pause"
    """It was given back, to rest until it is promoted."""
    TAKEN = "taken"
    """The lease was lost: somebody else ended the trial or has it now; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a trial has of another method's, which is the same trial."""

    study_name: str
    """Of the trial that was trained for both."""
    epochs: int
    """That were taken over and not trained again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker runs, and nobody else."""

    lease: Lease
    values: Mapping[str, Any]
    start: TrialStart
    """What the engine is asked to train."""
    folder: TrialFolder
    """Where its checkpoints are."""
    fingerprint: str
    """What its checkpoints are of."""
    retrains: Retrains | None = None
    """Whose retraining it is; None: a trial of a search, which never reads the test set."""
    common: int | None = None
    """The number of other methods' trials that may be the same; None: none may be."""
    twins: tuple[TrialFolder, ...] = ()
    """Where those have their checkpoints."""
    replayed: int = 0
    """The last epoch that was taken over under this lease: what an engine says up to it is known."""
    shared: Shared | None = None
    until: int | None = None
    """The epoch after which it pauses, unless it ends there; None: it trains to its end."""

    @property
    def leaves_after(self) -> int:
        """The epoch after which its slot is free, unless something ends it before."""
        epochs = self.start.config.epochs
        return epochs if self.until is None else min(self.until, epochs)

    @property
    def trial_id(self) -> int:
        """Optuna's id of the trial."""
        return self.lease.trial_id


@dataclass(frozen=True, slots=True)
class Reported:
    """An epoch's end, as the engine told it."""

    claim: Claim
    report: EpochReport
    last: bool
    leaving: bool = False
    """The trial was interrupted after this epoch: unless it has ended, it goes back to the queue."""
    test: TestScore | None = None
    """With the last epoch of a retraining."""


def ends(one: Reported) -> bool:
    """Whether a trial has nothing left to train."""
    return one.last or one.report.diverged


def pauses(one: Reported) -> bool:
    """Whether a trial rests from here on: it goes back to the queue, with this epoch."""
    return one.report.epoch == one.claim.until and not ends(one)


def is_repetition(one: Reported) -> bool:
    """Whether an engine trained an epoch again that had been taken over from another method's trial."""
    return one.report.epoch <= one.claim.replayed


class Left(Exception):  # noqa: N818 - says what happened, to the engine's thread
    """The engine did not come back and its trials were given away: whatever it says now is not wanted."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the database says of the experiment."""

    stop: bool
    grown: ExperimentSpec | None = None
    """Its new version, if it has changed since the last look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an engine may be away, in seconds."""

    hang: float
    """Before it counts as hung; less may do once its epochs are known, see `placing.hang_limit`."""
    grace: float | None = None
    """After it was told to stop at once; None: as long as its epoch takes."""
