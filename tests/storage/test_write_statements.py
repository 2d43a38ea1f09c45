"""The statements of a write: no more of them than what was said needs."""

from __future__ import annotations

import pytest

from storage import write_statements as writes

ALL = writes.end({"complete", "pruned", "failed", "released", "retry"}, closes=True)


def test_all_ends_together() -> None:
    for part in (writes.COMPLETED, writes.PRUNED, writes.FAILED, writes.WAITING, writes.CLOSED):
        assert ALL.count(part) == 1
    assert ALL.startswith(writes.ENDED)
    assert ALL.endswith(writes.TOLD)


@pytest.mark.parametrize(
    ("state", "parts"),
    [
        ("complete", [writes.COMPLETED]),
        ("pruned", [writes.PRUNED]),
        ("failed", [writes.FAILED]),
        ("released", [writes.WAITING]),
        ("retry", [writes.FAILED, writes.WAITING]),
    ],
)
def test_the_end_of_a_state_has_what_that_state_needs(state, parts) -> None:
    assert writes.end({state}, closes=False) == "".join([writes.ENDED, *parts, writes.TOLD])


def test_nothing_is_looked_for_where_nothing_can_be() -> None:
    drawing = writes.of_new_trials(writes.DRAW + writes.NOTE)
    assert "ON CONFLICT" not in drawing
    telling = writes.of_first_attempts(writes.REPORT + writes.POINTS + ALL)
    assert telling.count("ON CONFLICT") == 1  # the reason of a failure, which may be one of its attributes
    assert "ON CONFLICT" in writes.of_first_attempts(writes.DRAW)
    assert "ON CONFLICT" in writes.of_new_trials(writes.REPORT)
