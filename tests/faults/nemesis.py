"""Random faults over real workers until an experiment is done; then its history is checked.

    python -m tests.faults.nemesis --seconds 300 --workers 4 --trials 500 --seed 1

The faults and their moments come from the seed; what they hit depends on the machine. Workers are
killed, or stopped for longer than leases last; connections are ended; Postgres is restarted, fast or
by SIGKILL. A controller that gave up is started again, as an operator would.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from objectives.imports import ALLOW_VARIABLE
from storage.checker import check_history
from storage.database import Database, open_database
from storage.embedded import HOME_VARIABLE, EmbeddedPostgres
from storage.errors import StorageError
from storage.ledger import LEASE_VARIABLE, MAX_ATTEMPTS
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.faults.lab import Lab, Run, kill_server, lab_of, spec_of
from tests.faults.objectives import DIVERGES_BELOW, FOLDER_VARIABLE, PACE_VARIABLE, RAISES_ABOVE

EPOCHS = 4
LEASE_SECONDS = 3.0
CALM_SECONDS = 2.0
"""Between two faults, on average."""
PATIENCE_SECONDS = 240.0
"""For the end, once the faults are over."""

SHARES = {
    "kill a worker": 4,
    "stop a worker": 3,
    "end a connection": 4,
    "restart Postgres": 1,
    "kill Postgres": 1,
}
"""Fault → how often it is chosen, relative to the others."""


@dataclass
class Tally:
    """What was done, what came of it, and what should not be."""

    faults: Counter[str] = field(default_factory=Counter)
    controllers: int = 0
    """How many it took to the end."""
    seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.seconds:.0f} s, {sum(self.faults.values())} faults: {_counts(self.faults)}"
        yield f"controllers {self.controllers}; trials: {_counts(self.states)}"
        yield f"attempts {sum(self.attempts.values())}: {_counts(self.attempts)}"
        noted = {kind: self.events[kind] for kind in ("refused", "expired", "given_up", "requeued")}
        yield f"events: {_counts(Counter(noted))}"
        yield f"violations {len(self.violations)}"
        yield from self.violations


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


class Nemesis:
    """Does one fault at a time to a lab and its server."""

    def __init__(self, lab: Lab, server: EmbeddedPostgres, chance: random.Random) -> None:
        self._lab = lab
        self._server = server
        self._chance = chance
        self._asleep: list[tuple[float, int]] = []
        self.faults: Counter[str] = Counter()
        self._does: dict[str, Callable[[Run], bool]] = {
            "kill a worker": self._kill,
            "stop a worker": self._stop,
            "end a connection": self._end_connection,
            "restart Postgres": self._restart,
            "kill Postgres": self._kill_server,
        }

    def strike(self, run: Run) -> None:
        """One fault, if there is something to hit."""
        name = self._chance.choices(list(SHARES), list(SHARES.values()))[0]
        if self._does[name](run):
            self.faults[name] += 1

    def wake(self, *, all_of_them: bool = False) -> None:
        """Let those go on that have slept for long enough."""
        now = time.monotonic()
        due = [pid for until, pid in self._asleep if all_of_them or until <= now]
        self._asleep = [(until, pid) for until, pid in self._asleep if pid not in due]
        for pid in due:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _victim(self, run: Run) -> int | None:
        asleep = {pid for _, pid in self._asleep}
        alive = [process.pid for process in list(run.crew.processes.values()) if process.poll() is None]
        awake = sorted(pid for pid in alive if pid not in asleep)
        return self._chance.choice(awake) if awake else None

    def _kill(self, run: Run) -> bool:
        return self._signal(run, signal.SIGKILL) is not None

    def _stop(self, run: Run) -> bool:
        pid = self._signal(run, signal.SIGSTOP)
        if pid is not None:
            until = time.monotonic() + self._chance.uniform(0.2, 2.0) * LEASE_SECONDS
            self._asleep.append((until, pid))
        return pid is not None

    def _signal(self, run: Run, number: signal.Signals) -> int | None:
        pid = self._victim(run)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def _end_connection(self, _run: Run) -> bool:
        others = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
        )
        with suppress(StorageError), self._lab.database.begin() as connection:
            pids = connection.scalars(text(others)).all()
            if pids:
                chosen = {"pid": self._chance.choice(pids)}
                return bool(connection.scalar(text("SELECT pg_terminate_backend(:pid)"), chosen))
        return False

    def _restart(self, _run: Run) -> bool:
        self._server.stop()
        self._server.start()
        return True

    def _kill_server(self, _run: Run) -> bool:
        kill_server(self._server)
        self._server.start()
        return True


def storm(
    server: EmbeddedPostgres,
    database: Database,
    folder: Path,
    *,
    seconds: float,
    workers: int,
    trials: int,
    seed: int,
) -> Tally:
    """Run an experiment of so many trials under faults for so many seconds, or until it is done.

    The environment is to name `folder`; see `objectives`.
    """
    methods = {"random": {}, "tpe": {}}
    spec = spec_of(
        function="stormy",
        methods=methods,
        budget={"trials": trials // len(methods)},
        fixed={"epochs": EPOCHS},
        space={"x": {"low": 0.0, "high": 1.0}},
        pruner={"name": "asha", "min_epochs": 1, "eta": 2},
    )
    tally = Tally()
    began = time.monotonic()
    with lab_of(database, spec, folder) as lab:
        nemesis = Nemesis(lab, server, random.Random(seed))
        chance = random.Random(seed + 1)
        next_strike = began
        finished = False
        while not finished:
            tally.controllers += 1
            with lab.run(workers) as run:
                while run.thread is not None and run.thread.is_alive():
                    now = time.monotonic()
                    over = now - began > seconds
                    if now - began > seconds + PATIENCE_SECONDS:
                        tally.violations.append("it does not end")
                        return tally
                    nemesis.wake(all_of_them=over)
                    if not over and now >= next_strike:
                        nemesis.strike(run)
                        next_strike = time.monotonic() + chance.expovariate(1 / CALM_SECONDS)
                    run.thread.join(0.05)
                nemesis.wake(all_of_them=True)
                finished = run.outcome is not None and run.outcome.state == "finished"
                if run.error is not None and not isinstance(run.error, StorageError):
                    tally.violations.append(f"a controller ended by {run.error!r}")
                    return tally
        tally.faults = nemesis.faults
        tally.seconds = time.monotonic() - began
        _judge(lab, tally, trials)
    return tally


def _judge(lab: Lab, tally: Tally, trials: int) -> None:
    rows = lab.rows()
    tally.states = Counter(row.state for row in rows)
    tally.events = lab.events()
    with lab.database.begin() as connection:
        counted = connection.execute(text("SELECT state, count(*) FROM shoal.attempts GROUP BY state")).all()
    tally.attempts = Counter(dict(map(tuple, counted)))
    history = check_history(lab.database, lab.running.experiment.id, at_rest=True)
    tally.violations += map(str, history)
    tally.violations += lab.mislabelled()
    if len(rows) != trials or not set(tally.states) <= {"complete", "pruned", "failed"}:
        tally.violations.append(f"the budget of {trials} trials was not kept: {tally.states}")
    for row in rows:
        x, name = row.params.get("x", 0.5), f"{row.study_name} {row.number}"
        given_up = f"{MAX_ATTEMPTS} workers ended" in str(row.reason)
        if row.state == "failed" and not given_up and x <= RAISES_ABOVE:
            tally.violations.append(f"{name} failed: {row.reason}")
        if row.state == "complete" and (row.diverged != (x < DIVERGES_BELOW) or x > RAISES_ABOVE):
            tally.violations.append(f"{name} is complete, x = {x}, diverged: {row.diverged}")
        if row.state == "complete" and not row.diverged and row.epochs != EPOCHS:
            tally.violations.append(f"{name} is complete after {row.epochs} epochs")


def pace(seconds: float, workers: int, trials: int) -> float:
    """Seconds of an epoch, so that the trials last about as long as the faults."""
    return 0.5 * seconds * workers / (trials * EPOCHS)


@contextmanager
def _own_server() -> Iterator[tuple[EmbeddedPostgres, Database, Path]]:
    with tempfile.TemporaryDirectory(prefix="nemesis-") as place:
        Path(place).chmod(0o755)
        os.environ[HOME_VARIABLE] = os.environ[FOLDER_VARIABLE] = place
        server = EmbeddedPostgres(Path(place) / "postgres")
        url = server.start()
        try:
            close_optuna_storage(open_optuna_storage(url))
            with open_database(url) as database:
                yield server, database, Path(place)
        finally:
            server.stop()


def main() -> int:
    """1 if something was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ[ALLOW_VARIABLE] = "tests.faults.objectives"
    os.environ[LEASE_VARIABLE] = str(LEASE_SECONDS)
    os.environ[PACE_VARIABLE] = str(pace(asked.seconds, asked.workers, asked.trials))
    with _own_server() as (server, database, folder):
        tally = storm(
            server,
            database,
            folder,
            seconds=asked.seconds,
            workers=asked.workers,
            trials=asked.trials,
            seed=asked.seed,
        )
        print(f"seed {asked.seed}, {asked.workers} workers, {asked.trials} trials")
        print("\n".join(tally.lines()))
    return 1 if tally.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
