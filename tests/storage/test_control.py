"""The lock of a controller: one at a time, and taken again after its connection broke."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from storage import control as controls
from storage.control import Control
from storage.database import Database
from storage.errors import ExperimentBusy
from tests.contracts.processes import until

HOLDERS = """
FROM pg_locks WHERE locktype = 'advisory'
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def break_all(database: Database) -> None:
    """End the sessions that hold advisory locks, and wait until they are gone."""
    with database.begin() as connection:
        assert connection.scalar(text(f"SELECT count(pg_terminate_backend(pid)) {HOLDERS}"))
    until(lambda: database.scalar(f"SELECT count(*) {HOLDERS}") == 0)


@pytest.fixture
def control(database: Database):
    made = Control(database, 1, "e")
    made.take()
    yield made
    made.give_back()


def test_it_is_taken_again_after_its_connection_broke(control: Control, database: Database) -> None:
    break_all(database)
    control.keep()
    with pytest.raises(ExperimentBusy):
        Control(database, 1, "e").take()


def test_keeping_what_is_held_changes_nothing(control: Control, database: Database) -> None:
    control.keep()
    control.keep()
    control.give_back()
    other = Control(database, 1, "e")
    other.take()
    other.give_back()


def test_somebody_else_who_took_it_meanwhile_is_told_after_a_while(database: Database) -> None:
    """Not at once: it may be our own connection, of which the server does not know yet that it broke."""
    now = [0.0]
    ours, theirs = Control(database, 1, "e", clock=lambda: now[0]), Control(database, 1, "e")
    ours.take()
    break_all(database)
    theirs.take()
    ours.keep()
    now[0] += controls.STRANDED_SECONDS
    ours.keep()
    now[0] += 1.0
    with pytest.raises(ExperimentBusy):
        ours.keep()
    theirs.give_back()
    ours.keep()
    with pytest.raises(ExperimentBusy):
        theirs.take()
    ours.give_back()


def test_given_back_with_a_broken_connection(control: Control, database: Database) -> None:
    break_all(database)
    control.give_back()
    control.take()
