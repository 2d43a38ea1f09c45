"""More workers, each a process, than a server has connections for: what comes of it.

    python -m tests.faults.crowded_server [--workers 200] [--connections 40] [--studies 4] [--trials 100]

On an embedded Postgres of its own, with the real ledger, storage and worker loop and an engine that needs no
torch. Prints what happened, with what the history checker says, as JSON; exits with 1 unless every worker
ended well, every trial is complete after one attempt, and the checker has nothing to say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from sqlalchemy import text

from storage import embedded, queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database, open_database
from storage.embedded import EmbeddedPostgres
from storage.experiments import Experiments
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import SECONDS_VARIABLE

EPOCH_SECONDS = "0.01"


@dataclass(frozen=True, slots=True)
class Crowd:
    """How much of what."""

    workers: int
    """Each wants four or five connections at times: for claims, writes, the study's lock, Optuna's tables."""
    connections: int
    studies: int
    trials: int
    """Of each study."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    max_connections: int
    exit_code: int
    """How many workers ended with an error."""
    errors: str
    """What they wrote."""
    refused_connections: int
    """How often the server turned a client away."""
    states: dict[str, int]
    """Of the trials."""
    attempts: dict[int, int]
    """How many trials took so many."""
    events: dict[str, int]
    violations: list[str]
    """What the history checker says."""
    seconds: float

    def failures(self, crowd: Crowd) -> list[str]:
        """What isn't as it has to be."""
        trials = crowd.studies * crowd.trials
        expected = {
            "exit_code": 0,
            "max_connections": crowd.connections,
            "states": {"complete": trials},
            "attempts": {1: trials},
            "violations": [],
        }
        found = [f"{name}: {getattr(self, name)!r}" for name, value in expected.items()
                 if getattr(self, name) != value]  # fmt: skip
        counts = {
            "registered": crowd.workers,
            "retired": crowd.workers,
            "claimed": trials,
            "completed": trials,
        }
        found += [
            f"{kind}: {self.events.get(kind)}" for kind, n in counts.items() if self.events.get(kind) != n
        ]
        found += [
            f"{kind}: {self.events[kind]}"
            for kind in ("refused", "expired", "requeued")
            if kind in self.events
        ]
        if self.refused_connections <= crowd.workers:
            found.append(f"the server was not full: it refused {self.refused_connections} connections")
        return found


@contextmanager
def crowded_server(folder: Path, limit: int) -> Iterator[EmbeddedPostgres]:
    """A server with few connections."""
    few = embedded.CONFIGURATION.replace("max_connections = 300", f"max_connections = {limit}")
    assert few != embedded.CONFIGURATION
    with mock.patch.object(embedded, "CONFIGURATION", few):
        server = EmbeddedPostgres(folder / "postgres", durable=False)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def run(folder: Path, crowd: Crowd, patience: float) -> Outcome:
    """Let all workers come at once; `patience` in seconds."""
    with crowded_server(folder, crowd.connections) as server:
        url = server.start()
        spec = small_spec(methods={"random": {}}, replicates=crowd.studies, budget={"trials": crowd.trials})
        with open_database(url) as database, prepared(database, spec):
            pass  # and none of our own connections takes part
        began = time.monotonic()
        told = json.dumps({"experiment": spec.experiment, "workers": crowd.workers})
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.faults.crowd", told],
            cwd=Path(__file__).parents[2],
            env=os.environ | {URL_VARIABLE: url, SECONDS_VARIABLE: EPOCH_SECONDS},
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
        seconds = time.monotonic() - began
        log = (folder / "postgres" / "data" / "server.log").read_text(encoding="utf-8")
        with Database(url) as database:
            experiment = Experiments(database).get(spec.experiment).id
            rows = queries.trials(database, experiment)
            with database.begin() as connection:
                kinds = connection.execute(
                    text("SELECT kind, count(*) FROM shoal.events GROUP BY kind")
                ).all()
            return Outcome(
                max_connections=int(str(database.scalar("SHOW max_connections"))),
                exit_code=done.returncode,
                errors=done.stderr[-4000:],
                refused_connections=log.count("FATAL:  sorry, too many clients")
                + log.count("FATAL:  remaining connection slots"),
                states=dict(Counter(row.state for row in rows)),
                attempts=dict(Counter(row.attempts for row in rows)),
                events=dict(map(tuple, kinds)),
                violations=[str(one) for one in check_history(database, experiment, at_rest=True)],
                seconds=round(seconds, 1),
            )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--studies", type=int, default=4)
    parser.add_argument("--trials", type=int, default=100, help="of each study")
    parser.add_argument("--patience", type=float, default=1800.0, metavar="SECONDS")
    told = parser.parse_args()
    crowd = Crowd(told.workers, told.connections, told.studies, told.trials)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), crowd, told.patience)
    failures = outcome.failures(crowd)
    print(json.dumps({**asdict(crowd), **asdict(outcome), "failures": failures}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
