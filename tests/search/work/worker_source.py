"""A source of trials in memory for a worker's loop: it writes down what the worker says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from objectives.base import DataSpec, EpochReport, Task, TestScore, TrialFailure
from search.trials.claims import Claim, Verdict
from search.work.saving import Saver
from search.work.worker import Worker
from tests.contracts.claims import claim_of
from tests.contracts.fake_engine import FakeEngine

TASK = Task(data=DataSpec(name="digits"))
NEVER = 1e9
"""Seconds between two checkpoints of a trial, where a test wants none but those of a stop."""


@dataclass
class Source:
    """Trials 0 … `trials` − 1."""

    trials: int
    folder: Path
    losses: dict[int, str] = field(default_factory=dict)
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)
    """(Trial, epoch) → what is said there; elsewhere, to continue."""
    late: bool = False
    """Whether a verdict is heard after the next epoch, not at once."""
    stop_after: int | None = None
    """Reports after which one is asked to stop."""
    stopping: bool = False
    idle_after: int | None = None
    """Times that one waits in vain before one is idle."""
    lost_at: dict[int, int] = field(default_factory=dict)
    """Calls of `training` → the trial whose lease is lost meanwhile."""
    said: list[tuple[str, int, int]] = field(default_factory=list)
    asked_ahead: list[int] = field(default_factory=list)
    waits: int = 0
    trained: int = 0
    given: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    _open: dict[int, Verdict] = field(default_factory=dict)
    _heard: dict[int, Verdict] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        return self.given == self.trials and not self.again

    @property
    def idle(self) -> bool:
        return self.idle_after is not None and self.waits >= self.idle_after

    def take(self, free: int, ahead: int) -> list[Claim]:
        self.asked_ahead.append(ahead)
        numbers = []
        while len(numbers) < free and not self.exhausted:
            if self.again:
                numbers.append(self.again.popleft())
            else:
                numbers.append(self.given)
                self.given += 1
        return [self.claim(number) for number in numbers]

    def claim(self, number: int) -> Claim:
        attempt = self.attempts[number] = self.attempts.get(number, 0) + 1
        loss = self.losses.get(number, "cross_entropy")
        return claim_of(number, self.folder, loss=loss, token=number + 100 * attempt, attempt=attempt)

    def wait(self) -> None:
        self.waits += 1
        assert self.waits < 100

    @contextmanager
    def training(self) -> Iterator[None]:
        self.trained += 1
        yield
        # Between two epochs what was decided meanwhile is heard.
        self._heard |= self._open
        self._open.clear()
        if self.trained in self.lost_at:
            number = self.lost_at[self.trained]
            self._heard[number + 100 * self.attempts[number]] = Verdict.TAKEN
            self.again.append(number)

    def end_epoch(
        self,
        claim: Claim,
        report: EpochReport,
        *,
        last: bool,
        leaving: bool = False,
        test: TestScore | None = None,
    ) -> None:
        number = claim.lease.number
        self.said.append(("epoch", number, report.epoch))
        if leaving:
            self.said.append(("leaves", number, report.epoch))
        if not (last or leaving or report.diverged):
            verdict = self.verdicts.get((number, report.epoch), Verdict.CONTINUE)
            (self._open if self.late else self._heard)[claim.lease.token] = verdict
        self.stopping = self.stopping or len(self.said) == self.stop_after

    def verdict(self, claim: Claim, *, wait: bool) -> Verdict | None:
        found = self._heard.pop(claim.lease.token, None)
        if found is None and wait:
            self.said.append(("waited", claim.lease.number, 0))
            found = self._open.pop(claim.lease.token)
        return found

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        self.said.append(("fail", claim.lease.number, 0))

    def part(self, claim: Claim) -> None:
        self.said.append(("parts", claim.lease.number, 0))

    def of(self, number: int) -> list[tuple[str, int]]:
        return [(what, epoch) for what, who, epoch in self.said if who == number and what != "waited"]


ALL = [("epoch", 1), ("epoch", 2), ("epoch", 3)]
ENDED = ("parts", 0)


def worker_of(source: Source, engine: FakeEngine, saver: Saver | None = None) -> Worker:
    return Worker(source, engine, saver or Saver(NEVER))
