"""Far more connections wanted than a server has, by real processes with real workers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import connections, embedded, queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database, open_database
from storage.embedded import EmbeddedPostgres
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import SECONDS_VARIABLE

pytestmark = pytest.mark.slow

CONNECTIONS, WORKERS = 20, 24
"""Each wants four or five at times: for its claims, its writes, the study's lock, Optuna's tables."""
STUDIES, TRIALS = 4, 12


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    """A server with few connections."""
    monkeypatch.setattr(connections._crowd, "met_at", -math.inf)  # put back for the tests that follow
    few = embedded.CONFIGURATION.replace("max_connections = 300", f"max_connections = {CONNECTIONS}")
    assert few != embedded.CONFIGURATION
    monkeypatch.setattr(embedded, "CONFIGURATION", few)
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    server.start()
    yield server
    server.stop()


def test_workers_share_a_server_that_has_a_fifth_of_the_connections(
    crowded: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All come at once; none gives up, and nothing is lost, doubled or held back for ever."""
    monkeypatch.setenv(SECONDS_VARIABLE, "0.01")
    url = crowded.start()
    spec = small_spec(methods={"random": {}}, replicates=STUDIES, budget={"trials": TRIALS})
    with open_database(url) as database, prepared(database, spec):
        pass  # and none of the test's own connections takes part
    told = json.dumps({"experiment": spec.experiment, "workers": WORKERS})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.crowd", told],
        cwd=Path(__file__).parents[2],
        env=os.environ | {URL_VARIABLE: url},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    log = (tmp_path / "postgres" / "data" / "server.log").read_text(encoding="utf-8")
    refused = log.count("FATAL:  sorry, too many clients") + log.count("FATAL:  remaining connection slots")
    assert refused > WORKERS, "else the server was not full"
    with Database(url) as database:
        assert database.scalar("SHOW max_connections") == str(CONNECTIONS)
        (experiment,) = {row.experiment_id for row in _studies(database)}
        rows = queries.trials(database, experiment)
        assert Counter(row.state for row in rows) == {"complete": STUDIES * TRIALS}
        assert all(row.attempts == 1 for row in rows)
        assert check_history(database, experiment, at_rest=True) == []
        with database.begin() as connection:
            kinds = connection.execute(text("SELECT kind, count(*) FROM shoal.events GROUP BY kind")).all()
        counted = dict(map(tuple, kinds))
        assert counted["registered"] == counted["retired"] == WORKERS
        assert counted["claimed"] == counted["completed"] == STUDIES * TRIALS
        assert not {"refused", "expired", "requeued"} & counted.keys()


def _studies(database: Database) -> list[object]:
    with database.begin() as connection:
        return list(connection.execute(text("SELECT experiment_id FROM shoal.experiment_studies")))
