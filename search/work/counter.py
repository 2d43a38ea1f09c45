"""The engine's side of a desk: what the engine's thread takes and leaves, and what both threads share.

One lock guards all of it, and is never held while anybody waits for the database or trains.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from search.trials.claims import Claim, Reported, Verdict, ends

if TYPE_CHECKING:
    from objectives.base import EpochReport, TestScore, TrialFailure

WAIT_SECONDS = 0.5
"""Between two looks whether the process was interrupted, while there is nothing to train."""


class Counter:
    """What an engine's thread sees of its desk. Every method raises what ended the desk's side.

    `interrupted` is set when the worker has to go. A worker that gets nothing for `idle_seconds` is
    `idle`.
    """

    def __init__(
        self,
        *,
        interrupted: threading.Event,
        idle_seconds: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._interrupted = interrupted
        self._idle_seconds = idle_seconds
        self._idle_since: float | None = None
        self._clock = clock

        # Both threads, under the lock of `_changed`:
        self._changed = threading.Condition()
        self._inbox: list[Reported | tuple[Claim, TrialFailure] | tuple[Claim, str | None]] = []
        self._ready: deque[Claim] = deque()
        self._wanted = 0
        self._verdicts: dict[int, Verdict] = {}
        self._engine: dict[int, Claim] = {}
        self._lately: set[int] = set()
        self._busy_since: float | None = None
        self._longest: float | None = None
        self._stop = self._exhausted = self._closing = False
        self._error: BaseException | None = None

    @property
    def stopping(self) -> bool:
        """Whether trials are to leave at their epochs' ends, and none to begin."""
        return self._stop or self._interrupted.is_set()

    @property
    def exhausted(self) -> bool:
        """Whether there will be no other trial for this worker, as far as can be told now."""
        with self._changed:
            self._raise_error()
            return self._exhausted and not self._inbox and not self._ready

    @property
    def idle(self) -> bool:
        """Whether nothing came for `idle_seconds`; never without them. The engine's side holds no trial."""
        if self._idle_seconds is None or self._idle_since is None:
            return False
        with self._changed:
            return not self._ready and self._clock() - self._idle_since >= self._idle_seconds

    def take(self, free: int, ahead: int) -> list[Claim]:
        """Claimed trials for up to `free` slots; what is missing is asked for, and `ahead` besides."""
        with self._changed:
            self._raise_error()
            if self.stopping:
                return []
            given = [self._ready.popleft() for _ in range(min(free, len(self._ready)))]
            if given:
                self._idle_since = None
            self._engine |= {claim.lease.token: claim for claim in given}
            self._lately |= {claim.lease.token for claim in given}
            self._wanted = free - len(given) + ahead
            if self._wanted > len(self._ready):
                self._changed.notify_all()
            return given

    def end_epoch(
        self,
        claim: Claim,
        report: EpochReport,
        *,
        last: bool,
        leaving: bool = False,
        test: TestScore | None = None,
    ) -> None:
        """Leave an epoch's report. With `last` or `leaving` the trial has left its slot."""
        said = Reported(claim, report, last, leaving, test)
        self._leave(said, gone=claim if leaving or ends(said) else None)

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        """Say that a trial raised, and left its slot."""
        self._leave((claim, failure), gone=claim)

    def part(self, claim: Claim) -> None:
        """Say that a trial left its slot, after a verdict."""
        with self._changed:
            self._engine.pop(claim.lease.token, None)
            self._verdicts.pop(claim.lease.token, None)

    def verdict(self, claim: Claim, *, wait: bool) -> Verdict | None:
        """What becomes of a trial after its last report; None if that is open, and `wait` is not said."""
        token = claim.lease.token
        with self._changed:
            while wait and token not in self._verdicts:
                self._raise_error()
                self._changed.wait()
            self._raise_error()
            return self._verdicts.pop(token, None)

    def wait(self) -> None:
        """Until there is a trial, or a reason to end."""
        if self._idle_since is None:
            self._idle_since = self._clock()
        while not self.idle:
            with self._changed:
                self._raise_error()
                if self._ready or self._exhausted or self.stopping:
                    return
                self._changed.wait(WAIT_SECONDS)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around each call that trains: the desk notices when it does not end."""
        with self._changed:
            self._busy_since = self._clock()
        yield
        with self._changed:
            seconds = self._clock() - self._busy_since
            self._longest = max(seconds, self._longest or 0.0)
            self._busy_since = None
            self._lately.clear()

    def _leave(self, said: Reported | tuple[Claim, TrialFailure], *, gone: Claim | None) -> None:
        with self._changed:
            self._raise_error()
            self._inbox.append(said)
            token = token_of(said)
            if self._verdicts.get(token) is Verdict.CONTINUE:
                del self._verdicts[token]  # of an epoch before this one
            if gone is not None:
                self._engine.pop(gone.lease.token, None)
            self._exhausted = False
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def token_of(said: Reported | tuple[Claim, object]) -> int:
    """The lease of which something was said."""
    return (said.claim if isinstance(said, Reported) else said[0]).lease.token
