"""What a running experiment says of itself, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from storage.records import StudyProgress


@dataclass(frozen=True, slots=True)
class Preparing:
    """Something that takes seconds begins: ``starting Ray``, ``preparing 15 studies``."""

    what: str


@dataclass(frozen=True, slots=True)
class Started:
    """Workers are at work."""

    experiment: str
    workers: int
    resumed: bool
    """The experiment was there before."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far everything is; comes about once a second."""

    studies: Sequence[StudyProgress]
    trials: int
    """That all studies together may have."""
    seconds: float
    """Since this run began."""
    workers: int
    retraining: Sequence[StudyProgress] = ()
    """The studies in which winners are retrained, as far as there are any yet."""

    @property
    def ended(self) -> int:
        """Trials that are complete, pruned or failed."""
        return sum(row.complete + row.pruned + row.failed for row in self.studies)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A worker died, a trial was queued again: nothing is lost, but it should be known."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run was asked to stop; workers end their epochs. A second signal doesn't wait for them."""

    why: str


Event: TypeAlias = Preparing | Started | Progress | Trouble | Stopping
Listener: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    experiment: str
    state: Literal["finished", "stopped", "failed"]
    reason: str
    """Why it failed or stopped; empty for a finished one."""
    studies: Sequence[StudyProgress]
    seconds: float
    resumed: bool
