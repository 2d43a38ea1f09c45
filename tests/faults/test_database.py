"""A database that is stopped, killed, away, full or locked while real workers write to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.patience import PATIENCE_VARIABLE
from tests.conftest import on_server
from tests.contracts.processes import PATIENCE
from tests.faults.lab import Lab, kill_server, lab_of, spec_of, until
from tests.faults.objectives import PACE_VARIABLE

pytestmark = pytest.mark.slow

MANY = 30
"""Trials of three epochs: some seconds of work while the gate is closed."""


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs take time until the gate is opened, so that there is work left for what happens meanwhile."""
    monkeypatch.setenv(PACE_VARIABLE, "0.1")


def fast_stop(server: EmbeddedPostgres) -> None:
    server.stop()


@pytest.mark.parametrize("end", [fast_stop, kill_server])
def test_a_restart_under_load_costs_nothing(
    database: Database, folder: Path, server: EmbeddedPostgres, end, slowly
) -> None:
    """Twice, in the middle of epochs. Workers and controller go on by themselves; no trial is tried again."""
    with lab_of(database, spec_of(points=MANY), folder) as lab:
        with lab.run(workers=3) as run:
            for _ in range(2):
                enough = lab.epochs() + 4
                until(lambda enough=enough: lab.epochs() >= enough)
                end(server)
                server.start()
            lab.open_gate()
            assert run.result().state == "finished"
        lab.sound(complete=MANY)
        assert lab.events()["expired"] == lab.events()["requeued"] == 0


def test_away_for_longer_than_leases_last(
    database: Database,
    folder: Path,
    server: EmbeddedPostgres,
    slowly: None,
    short_leases: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers stop writing, wait, and claim anew under new leases; nothing is doubled."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    spec = spec_of(points=MANY)
    with lab_of(database, spec, folder) as lab, lab.worker("a") as one, lab.worker("b") as other:
        until(lambda: lab.epochs() >= 4)
        server.stop()
        for name in "ab":
            log = lab.job().log(name)
            until(lambda log=log: "is away" in log.read_text(encoding="utf-8"))
        assert one.poll() is other.poll() is None
        lab.open_gate()
        server.start()
        assert [one.wait(PATIENCE), other.wait(PATIENCE)] == [0, 0]
        lab.finish()
        lab.sound(complete=MANY)
        states = [attempt.state for row in lab.rows() for attempt in lab.attempts(row.number)]
        assert states.count("lost") >= 1


def test_a_storm_of_workers_on_a_database_with_few_connections(
    database: Database, folder: Path, server: EmbeddedPostgres
) -> None:
    name = make_url(database.url).database
    assert name
    on_server(server.start(), "ALTER DATABASE {} CONNECTION LIMIT 6", name)
    with lab_of(database, spec_of(points=24), folder) as lab:
        with lab.run(workers=6) as run:
            assert run.result().state == "finished"
            assert not [event for event in run.events if "died" in str(event)]
        on_server(server.start(), "ALTER DATABASE {} CONNECTION LIMIT -1", name)
        lab.sound(complete=24)
        assert lab.events()["claimed"] == 24


def _waits_for_the_study(lab: Lab) -> bool:
    return bool(
        lab.database.scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database())"
        )
    )


def test_a_long_lock_on_a_study_row_holds_up_claims_alone(
    database: Database, folder: Path, slowly: None
) -> None:
    """Trials under way are written and end meanwhile; the next ones begin when the lock is gone."""
    spec = spec_of(points=MANY, methods={"random": {}})  # new trials, whose numbers the study's row guards
    with lab_of(database, spec, folder) as lab, lab.worker() as worker:
        until(lambda: lab.epochs() >= 1)
        with (
            database.own_connection() as other,
            other.execution_options(isolation_level="READ COMMITTED").begin(),
        ):
            other.execute(text("SELECT FROM studies FOR UPDATE"))
            ended = len([row for row in lab.rows() if row.state == "complete"])
            until(lambda: len([row for row in lab.rows() if row.state == "complete"]) > ended)
            until(lambda: _waits_for_the_study(lab))
            claimed = lab.events()["claimed"]
            until(lambda: not _waits_for_the_study(lab))  # it gave up waiting, and will ask again
            assert lab.events()["claimed"] == claimed
            assert worker.poll() is None
        lab.open_gate()
        assert worker.wait(PATIENCE) == 0
        lab.sound(complete=MANY)
        assert lab.events()["expired"] == lab.events()["refused"] == 0
