"""Which experiments a worker serves that was not hired, and when it has nothing more to do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from search.launch.joining import over, serviceable
from storage.records import ExperimentRecord, ExperimentState

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
