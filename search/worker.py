"""The loop that keeps an engine's slots full: claim, train, report, retire.

Knows no Ray, no SQL and no torch. A worker waits for nobody: where no trial can be had it asks again,
where one ends it takes the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from objectives.base import EpochEnd, EpochReport, TrialFailure
from search.broker import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.base import Engine
    from search.broker import Claim

Ending: TypeAlias = Literal["exhausted", "stopped"]
"""Why a worker ended: nothing is left that it could begin, or it was asked to."""

FIRST_WAIT = 0.02
LONGEST_WAIT = 0.5
"""Seconds between two looks for a trial while none can be had, doubling from the first."""


class TrialSource(Protocol):
    """What a worker needs of `search.broker.Broker`."""

    @property
    def exhausted(self) -> bool:
        """Whether `claim` will never again give a trial."""

    def claim(self) -> Claim | None:
        """A trial to run, or None if there is none now."""

    def end_epoch(self, claim: Claim, report: EpochReport, *, last: bool) -> Verdict:
        """Store an epoch and say what becomes of the trial."""

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        """Store that a trial raised."""

    def release(self, claim: Claim) -> None:
        """Give back a trial that was interrupted."""

    def checkpoint_path(self, study_name: str, number: int) -> Path:
        """Where to save a trial that is interrupted."""


class Worker:
    """Runs trials of one source on one engine until none is left or it is asked to stop.

    `should_stop` is looked at between epochs. `wait(seconds)` passes the time when there is
    nothing to do; it may return early. One thread.
    """

    def __init__(
        self,
        source: TrialSource,
        engine: Engine,
        *,
        should_stop: Callable[[], bool],
        wait: Callable[[float], object],
    ) -> None:
        self._source = source
        self._engine = engine
        self._should_stop = should_stop
        self._wait = wait
        self._claims: dict[int, Claim] = {}
        self._stopping = False

    def run(self) -> Ending:
        """Work. What the database or the engine raises leaves this method, the trials with it."""
        pause = FIRST_WAIT
        while True:
            self._stopping = self._stopping or self._should_stop()
            if not self._stopping:
                self._fill()
            if self._claims:
                pause = FIRST_WAIT
                for event in self._engine.advance():
                    self._handle(event)
            elif self._stopping:
                return "stopped"
            elif self._source.exhausted:
                return "exhausted"
            else:
                self._wait(pause)
                pause = min(2 * pause, LONGEST_WAIT)

    def _fill(self) -> None:
        while self._engine.free_slots > 0:
            claim = self._source.claim()
            if claim is None:
                return
            self._claims[claim.start.trial_id] = claim
            self._engine.admit(claim.start)

    def _handle(self, event: EpochEnd | TrialFailure) -> None:
        claim = self._claims[event.trial_id]
        if isinstance(event, TrialFailure):
            # The engine has already freed the slot.
            del self._claims[event.trial_id]
            self._source.fail(claim, event)
            return
        verdict = self._source.end_epoch(claim, event.report, last=event.last)
        if verdict is Verdict.CONTINUE:
            self._stopping = self._stopping or self._should_stop()
            if not self._stopping:
                return
            self._engine.save(
                event.trial_id, self._source.checkpoint_path(claim.study_name, claim.asked.number)
            )
            self._source.release(claim)
        self._engine.retire(event.trial_id)
        del self._claims[event.trial_id]
