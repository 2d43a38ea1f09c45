"""Which experiments a worker serves that was not hired, and when it has nothing more to do."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from search.control.controller import find_or_create
from search.control.crew import Assignment
from search.experiment.spec import load_spec
from search.launch.joining import Joined, over, serviceable
from storage.database import Database
from storage.errors import DatabaseUnsuitable
from storage.experiments import Experiments
from storage.records import ExperimentRecord, ExperimentState
from tests.contracts.database_roles import roles_in
from tests.contracts.shoal_command import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(number: int, state: ExperimentState, *, stop: bool = False) -> ExperimentRecord:
    return ExperimentRecord(
        id=number,
        name=f"e{number}",
        spec={},
        space_hash="",
        state=state,
        stop_requested=stop,
        created_at=NOW,
        updated_at=NOW,
        environment={},
    )


def test_the_oldest_first_of_those_that_are_begun_or_to_begin() -> None:
    records = [
        record(3, "running"),
        record(1, "finished"),
        record(2, "created"),
        record(4, "running", stop=True),
    ]
    assert [one.id for one in serviceable(records, ())] == [2, 3]
    assert [one.id for one in serviceable(records, {2})] == [3], "it gave nothing a moment ago"


@pytest.mark.parametrize(
    ("states", "ended"),
    [
        (["finished", "failed", "stopped"], True),
        (["finished", "running"], False),
        (["created"], False),
    ],
)
def test_over_when_all_have_ended(states: list[ExperimentState], ended: bool) -> None:
    assert over([record(number, state) for number, state in enumerate(states)]) is ended


def test_a_role_that_may_only_read_is_no_experiments_matter(database_url: str, tmp_path: Path) -> None:
    """It leaves and says so, instead of waiting for an experiment that it could serve."""
    urls = roles_in(database_url, tmp_path / "roles")
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny("tiny"), encoding="utf-8")
    with Database(urls.owner) as owner:
        find_or_create(Experiments(owner), load_spec(file))
    with Database(urls.reader) as reader, pytest.raises(DatabaseUnsuitable, match="shoal_worker"):
        Joined(
            reader,
            [],
            Assignment(urls.reader, "", "plain", "cpu"),
            worker="w",
            interrupted=threading.Event(),
            idle_seconds=0.1,
            abandon=lambda _reason: None,
            tell=lambda _said: None,
        ).run()
