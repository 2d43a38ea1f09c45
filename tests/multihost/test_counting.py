"""What the lab counts, on made-up attempts: it must be able to see what must not be."""

from __future__ import annotations

from dataclasses import replace

from tests.multihost.counts import Counts, Note, Tried, epochs_lost, table

SEED = 11


def attempt(number: int, host: str, first_written: int | None, *, started: float = 0.0) -> Tried:
    """One at trial 1 by the only process of a machine."""
    return Tried(1, number, "lost", host, 100, started, None, first_written, SEED)


def notes(host: str, *epochs: int, at: float = 1.0) -> list[Note]:
    """What that process noted."""
    return [Note(host, 100, SEED, epoch, at + place / 10) for place, epoch in enumerate(epochs)]


def test_epochs_beyond_the_checkpoint_are_lost() -> None:
    tried = [attempt(1, "a", 1), attempt(2, "b", 4, started=5.0)]
    # b runs through epochs 1 to 3 again on its way to where the checkpoint was: that is no training.
    assert epochs_lost(tried, [*notes("a", 1, 2, 3, 4, 5), *notes("b", 1, 2, 3, 4, at=6.0)]) == [2]


def test_nothing_is_lost_that_a_checkpoint_held() -> None:
    tried = [attempt(1, "a", 1), attempt(2, "b", 4, started=5.0)]
    assert epochs_lost(tried, notes("a", 1, 2, 3)) == [0]


def test_training_on_after_the_lease_was_lost_counts() -> None:
    tried = [attempt(1, "a", 1), attempt(2, "b", 3, started=2.0)]
    assert epochs_lost(tried, [*notes("a", 1, 2), *notes("a", 3, 4, 5, at=3.0)]) == [3]


def test_a_process_that_gets_its_trial_back_does_not_count_it_twice() -> None:
    tried = [attempt(1, "a", 1), attempt(2, "a", 3, started=5.0)]
    assert epochs_lost(tried, [*notes("a", 1, 2, 3), *notes("a", 1, 2, 3, 4, 5, 6, at=6.0)]) == [1]


def test_an_attempt_that_stored_nothing_is_passed_over() -> None:
    tried = [attempt(1, "a", 1), attempt(2, "b", None, started=5.0), attempt(3, "c", 3, started=9.0)]
    assert epochs_lost(tried, [*notes("a", 1, 2, 3, 4), *notes("b", 1, 2, at=6.0)]) == [2, 0]


SOUND = Counts(
    scenario="any", trials=20, ended=20, ended_twice=0, epochs=200, attempts=21, lost=1, refused=3, late=0,
    repeated=2, worst=2, allowed=3, contradictions=(), hosts={"node1": 11, "node2": 10}, went_on=4.0,
    seconds=20.0,
)  # fmt: skip


def test_each_broken_promise_is_told() -> None:
    assert SOUND.problems(10) == []
    broken = {"ended": 19, "ended_twice": 1, "epochs": 199, "late": 1, "worst": 4, "contradictions": ("x",)}
    for name, value in broken.items():
        assert len(replace(SOUND, **{name: value}).problems(10)) == 1, name  # type: ignore[arg-type]


def test_the_table_has_a_line_per_scenario_and_says_what_was_set() -> None:
    heads, *lines = table([replace(SOUND, settings={"lease": "5"}), SOUND]).splitlines()
    assert heads.split()[0] == "scenario"
    assert [line.split()[0] for line in lines] == ["any", "any", "set:"]
