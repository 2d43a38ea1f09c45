"""A desk whose broker, twins and clock are the test's, to be moved by hand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from objectives.base import EpochReport, TrialFailure
from search.experiment.spec import ExperimentSpec
from search.trials.claims import Claim, Look, Patience, Reported, Verdict, ends
from search.trials.sharing import Sharing
from search.work.desk import Desk
from storage.errors import DatabaseUnreachable
from storage.twins import Asked, Found
from tests.contracts.claims import claim_of

AWAY = DatabaseUnreachable("away", retryable=True)


class Holdings:
    """How many leases are held, and when to beat."""

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def seconds_to_beat(self) -> float:
        return 10.0


class Twins:
    """What other methods' trials have for those of `Broker` that may be shared."""

    def __init__(self) -> None:
        self.points: list[EpochReport] = []
        self.leader: int | None = 99

    def look(self, asked: Iterable[Asked]) -> dict[int, Found]:
        return {
            one.token: Found(
                self.leader, "s/other/0", tuple(point for point in self.points if point.epoch > one.after)
            )
            for one in asked
        }


class Broker:
    """Trials 0 … `trials` − 1, what is said of them, and errors on demand."""

    def __init__(self, trials: int, folder: Path, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.waiting = deque(claim_of(number, folder) for number in range(trials))
        self.holdings = Holdings()
        self.twins = Twins()
        self.sharing = Sharing(self.twins, judged=True, clock=clock)  # type: ignore[arg-type]
        self.said: list[tuple[str, int]] = []
        self.prune: set[int] = set()
        self.stored: list[list[int]] = []
        self.errors: dict[str, Exception] = {}
        self.taken: list[int] = []
        self.adopted: list[ExperimentSpec] = []
        self.asked: list[int] = []

    def _raise(self, name: str) -> None:
        if name in self.errors:
            raise self.errors[name]

    @property
    def exhausted(self) -> bool:
        return not self.waiting and not self.sharing

    def adopt(self, spec: ExperimentSpec) -> None:
        self.adopted.append(spec)

    def claim(self, wanted: int) -> list[Claim]:
        self._raise("claim")
        self.asked.append(wanted)
        freed = self.sharing.freed(wanted)
        missing = min(wanted - len(freed), len(self.waiting))
        freed += self.sharing.sift(self.waiting.popleft() for _ in range(missing))
        return freed + self.sharing.freed(wanted - len(freed))

    def store(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        self._raise("store")
        self.stored.append([one.claim.trial_id for one in reported])
        verdicts = {one.claim.lease.token: Verdict.FINISH for one in reported if ends(one)}
        self.sharing.heard(verdicts)
        return verdicts

    def judge(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        self._raise("judge")
        verdicts = {
            one.claim.lease.token: Verdict.PRUNE if one.claim.trial_id in self.prune else Verdict.CONTINUE
            for one in reported
        }
        self.sharing.heard(verdicts)
        return verdicts

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        self.said.append(("fail", claim.trial_id))

    def retry(self, claim: Claim, reason: str, traceback: str | None = None) -> None:
        self.said.append((f"retry: {reason}", claim.trial_id))

    def release(self, claim: Claim) -> None:
        self.said.append(("release", claim.trial_id))

    def flush(self) -> None:
        self._raise("flush")
        self.said.append(("flush", -1))

    def lost(self) -> list[int]:
        lost, self.taken = self.taken, []
        self.sharing.drop(lost)
        return lost

    def recover(self) -> None:
        self._raise("recover")

    def of(self, trial_id: int) -> list[str]:
        return [what for what, who in self.said if who == trial_id]


class Table:
    """A desk with everything that it is told."""

    def __init__(
        self,
        trials: int,
        folder: Path,
        *,
        hang: float = 100.0,
        grace: float | None = None,
        idle: float | None = None,
    ) -> None:
        self.now = 0.0
        self.broker = Broker(trials, folder, lambda: self.now)
        self.look = Look(stop=False)
        self.looks = 0
        self.interrupted = threading.Event()
        self.abandoned: list[str] = []
        self.desk = Desk(
            self.broker,  # type: ignore[arg-type]
            look=self._look,
            interrupted=self.interrupted,
            patience=Patience(hang=hang, grace=grace),
            abandon=self.abandoned.append,
            idle_seconds=idle,
            clock=lambda: self.now,
        )

    def _look(self) -> Look:
        self.looks += 1
        return self.look

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.desk.step()

    def take(self, free: int, ahead: int = 0) -> list[Claim]:
        """Ask, let the desk work, take."""
        self.desk.take(0, free + ahead)
        self.step()
        return self.desk.take(free, ahead)
