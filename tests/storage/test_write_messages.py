"""Which statements a worker's write takes, told from what it says alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from storage import write_statements as writes
from storage.write_messages import Message, message_of, unless_written
from tests.contracts.claims import lease_of
from tests.contracts.ledger_writes import draw_of, end, epoch_of

FIRST = lease_of(1, token=11)
SECOND = lease_of(2, token=12)
RESUMED = replace(lease_of(3, token=13, attempt=2), last_step=4)


def message(beats=(), draws=(), epochs=(), endings=()) -> Message:
    found = message_of(beats, draws, epochs, endings)
    assert found is not None
    return found


def said(found: Message) -> dict[int, dict[str, object]]:
    return {one["token"]: one for one in json.loads(found.values["said"])}


def test_who_says_nothing_sends_nothing() -> None:
    assert message_of((), (), (), ()) is None


def test_a_heartbeat_is_the_fence_alone() -> None:
    found = message(beats=[FIRST, SECOND])
    assert found.script == writes.HOLD + writes.FENCE + writes.REFUSED
    assert found.values["tokens"] == "{11,12}"
    assert found.values.keys() == {"tokens", "said"}


def test_a_lease_that_says_several_things_passes_the_fence_once() -> None:
    found = message([FIRST], [draw_of(FIRST)], [epoch_of(FIRST, 1), epoch_of(FIRST, 2)], [end(FIRST)])
    (fenced,) = json.loads(found.values["said"])
    assert (fenced["token"], fenced["first_step"], fenced["last_step"]) == (11, 1, 2)
    parts = (writes.DRAW, writes.REPORT, writes.POINTS, writes.ENDED)
    places = [found.script.index(part) for part in parts]
    assert places == sorted(places), "within a lease: draws, epochs, ending"


def test_a_trial_that_was_not_interrupted_is_closed_at_the_fence() -> None:
    found = message(endings=[end(FIRST, "failed", reason="it raised")])
    assert said(found)[11]["closes"] == "failed"
    assert said(found)[11]["reason"] == "it raised"
    assert writes.CUT not in found.script
    assert writes.CLOSED not in found.script


def test_one_that_was_is_closed_after_its_curve_was_cut() -> None:
    """Its neighbours' endings are then closed with it, by the same statement."""
    found = message(beats=[SECOND], endings=[end(RESUMED), end(FIRST, "pruned")])
    assert not any("closes" in one for one in said(found).values())
    assert found.script.index(writes.CUT) < found.script.index(writes.CLOSED)


@pytest.mark.parametrize(
    ("draws", "blank", "plain"),
    [
        ([draw_of(FIRST)], {11}, True),
        ([draw_of(FIRST), draw_of(SECOND)], {11}, False),
        ([], set(), True),
    ],
)
def test_new_trials_alone_are_drawn_without_a_look(draws, blank, plain) -> None:
    script = writes.DRAW + writes.NOTE
    found = unless_written(script, draws, [], [], blank=blank)
    assert (found == writes.of_new_trials(script)) is plain
    assert (found == script) is not plain


def test_attributes_of_an_ending_may_be_there_already() -> None:
    script = writes.DRAW + writes.NOTE
    ending = end(FIRST, attributes={"epochs": 3})
    assert unless_written(script, [draw_of(FIRST)], [], [ending], blank={11}) == script


@pytest.mark.parametrize("lease", [FIRST, RESUMED])
def test_epochs_of_a_first_attempt_are_reported_without_a_look(lease) -> None:
    script = writes.REPORT + writes.POINTS
    found = unless_written(script, [], [epoch_of(lease, 5)], [], blank=())
    assert (found == writes.of_first_attempts(script)) is (lease is FIRST)
    assert found != script or lease is RESUMED
