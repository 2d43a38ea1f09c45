"""Which trials may start where, how many are asked ahead, when an engine counts as hung."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.trials import placing
from search.trials.placing import Limits, Load, Starts, may_ever_start, may_start
from storage.records import StudyProgress, StudyRecord

NOTHING = Load(trials=0, running=0, interrupted=0, fresh=0, epochs=0, committed=0)
TEN = Limits(10, None, None)


class TestMayStart:
    FREE = Load(trials=3, running=1, interrupted=0, fresh=0, epochs=9, committed=12)

    def test_budget_of_trials(self) -> None:
        assert may_start(self.FREE, Limits(4, None, None))
        assert not may_start(self.FREE, Limits(3, None, None))
        assert not may_ever_start(self.FREE, Limits(3, None, None))

    def test_in_flight_is_for_now(self) -> None:
        limits = Limits(4, None, 1)
        assert not may_start(self.FREE, limits)
        assert may_ever_start(self.FREE, limits)

    def test_epochs_promised_to_running_trials_are_not_given_twice(self) -> None:
        assert not may_start(self.FREE, Limits(4, 12, None))
        assert may_ever_start(self.FREE, Limits(4, 12, None)), "the running trial may be pruned"
        assert may_start(self.FREE, Limits(4, 13, None))
        assert not may_ever_start(self.FREE, Limits(4, 9, None))

    def test_interrupted_trials_go_on_whatever_the_budget(self) -> None:
        load = Load(trials=3, running=0, interrupted=1, fresh=0, epochs=9, committed=12)
        assert may_start(load, Limits(3, 9, 1))
        assert may_ever_start(load, Limits(3, 9, 1))
        assert not may_start(Load(3, 1, 1, 0, 9, 12), Limits(3, 9, 1)), "in_flight holds for them too"

    def test_waiting_points_of_a_grid(self) -> None:
        load = Load(trials=6, running=0, interrupted=0, fresh=4, epochs=6, committed=6)
        assert may_start(load, Limits(6, None, None))
        assert not may_start(load, Limits(6, 6, None))


class TestStarts:
    def test_interrupted_then_waiting_then_new(self) -> None:
        load = replace(NOTHING, trials=5, interrupted=1, fresh=2)
        assert placing.starts(load, TEN, 1, 3) == Starts(1, 0)
        assert placing.starts(load, TEN, 4, 3) == Starts(3, 1)
        assert placing.starts(load, TEN, 99, 3) == Starts(3, 5)

    def test_in_flight_and_epochs_hold_within_a_batch(self) -> None:
        assert placing.starts(NOTHING, Limits(10, None, 4), 99, 3) == Starts(0, 4)
        # 3 × 3 epochs are promised; the third trial begins with 6 of 7 promised.
        assert placing.starts(NOTHING, Limits(10, 7, None), 99, 3) == Starts(0, 3)

    @settings(max_examples=200)
    @given(
        st.builds(
            Load,
            trials=st.integers(0, 12),
            running=st.integers(0, 5),
            interrupted=st.integers(0, 3),
            fresh=st.integers(0, 5),
            epochs=st.integers(0, 30),
            committed=st.integers(0, 50),
        ),
        st.builds(
            Limits,
            trials=st.integers(1, 12),
            epochs=st.none() | st.integers(1, 40),
            in_flight=st.none() | st.integers(1, 6),
        ),
        st.integers(0, 20),
    )
    def test_a_batch_is_so_many_single_ones(self, load: Load, limits: Limits, wanted: int) -> None:
        at_once = placing.starts(load, limits, wanted, 3)
        singles = Starts(0, 0)
        for _ in range(wanted):
            one = placing.starts(load, limits, 1, 3)
            if not one.waiting + one.new:
                break
            singles = Starts(singles.waiting + one.waiting, singles.new + one.new)
            load = placing.begun(load, 3)
        assert at_once == singles


class TestShares:
    def _shares(self, wanted: int, limits: dict[str, Limits], **loads: Load) -> dict[str, int]:
        return placing.shares(loads, limits, wanted, 3)

    def test_furthest_behind_first(self) -> None:
        loads = {
            "a": replace(NOTHING, trials=3),
            "b": replace(NOTHING, trials=1, running=1),
            "c": replace(NOTHING, trials=2, running=1),
        }
        limits = dict.fromkeys("abc", TEN)
        assert list(self._shares(1, limits, **loads)) == ["b"]
        assert self._shares(3, limits, **loads) == {"b": 2, "c": 1}
        assert self._shares(12, limits, **loads) == {"b": 5, "c": 4, "a": 3}, "they end equally far"

    def test_behind_is_a_share_of_the_budget(self) -> None:
        loads = {"a": replace(NOTHING, trials=3), "b": replace(NOTHING, trials=2)}
        assert list(self._shares(1, {"a": TEN, "b": Limits(4, None, None)}, **loads)) == ["a"]

    def test_waiting_points_have_not_started(self) -> None:
        loads = {"a": replace(NOTHING, trials=1), "grid": replace(NOTHING, trials=10, fresh=10)}
        assert list(self._shares(1, {"a": TEN, "grid": TEN}, **loads)) == ["grid"]

    def test_equal_ones_in_the_experiments_order(self) -> None:
        assert list(self._shares(1, {"a": TEN, "b": TEN}, b=NOTHING, a=NOTHING)) == ["a"]

    def test_full_or_done_or_foreign_ones_are_left_out(self) -> None:
        loads = {
            "full": replace(NOTHING, trials=1, running=1),
            "done": replace(NOTHING, trials=10),
            "foreign": NOTHING,
            "open": replace(NOTHING, trials=9),
        }
        limits = {"full": Limits(10, None, 1), "done": TEN, "open": TEN}
        assert self._shares(5, limits, **loads) == {"open": 1}


class TestAhead:
    @pytest.mark.parametrize(("ending", "expected"), [(0, 0), (1, 1)])
    def test_one_slot_asks_only_while_its_trial_trains_its_last_epoch(
        self, ending: int, expected: int
    ) -> None:
        assert placing.ahead(1, ending) == expected

    def test_many_slots_have_some_in_reserve(self) -> None:
        assert placing.ahead(16, 0) == 2
        assert placing.ahead(16, 3) == 5
        assert placing.ahead(256, 0) == 32
        assert placing.ahead(4, 4) == 4, "never more than would fill every slot anew"

    def test_as_many_as_lately_ended_at_once(self) -> None:
        assert placing.ahead(16, 3, burst=6) == 9
        assert placing.ahead(16, 0, burst=1) == 2
        assert placing.ahead(16, 12, burst=6) == 16
        assert placing.ahead(1, 0, burst=1) == 0


class TestHanging:
    def test_the_users_limit_holds_until_an_epoch_was_seen(self) -> None:
        assert placing.hang_limit(7200, None) == 7200
        assert placing.hang_limit(5, None) == 5

    def test_afterwards_a_multiple_of_the_longest_if_that_is_less(self) -> None:
        assert placing.hang_limit(7200, 100) == 2000
        assert placing.hang_limit(7200, 0.1) == placing.HANG_LEAST
        assert placing.hang_limit(7200, 1000) == 7200
        assert placing.hang_limit(5, 0.1) == 5

    def test_who_came_in_since_it_last_came_back_is_suspected(self) -> None:
        assert placing.suspects({1, 2, 3}, {3}) == {3}
        assert placing.suspects({1, 2, 3}, {4}) == {1, 2, 3}
        assert placing.suspects({1, 2, 3}, set()) == {1, 2, 3}


class TestChains:
    def test_the_first_of_those_that_are_repeated(self) -> None:
        assert placing.chain_root(3, [None, None, None, None]) == 3
        assert placing.chain_root(4, [None, None, 1, None, 2]) == 1

    @pytest.mark.parametrize("repeats", [[1, 0], [0], [5], [-3]])
    def test_what_others_wrote_leads_nowhere(self, repeats: list[int | None]) -> None:
        assert 0 <= placing.chain_root(len(repeats) - 1, repeats) < len(repeats)


def test_a_study_with_something_waiting_is_not_over() -> None:
    def row(**counts: int) -> StudyProgress:
        fields = dict.fromkeys(("waiting", "running", "complete", "pruned", "failed", "epochs"), 0)
        study = StudyRecord(id=1, experiment_id=1, method="a", replicate=0, name="a")
        return StudyProgress(study=study, seconds=0.0, best=None, **fields | counts)

    assert not placing.is_over(row(waiting=1, complete=9), TEN)
    assert placing.is_over(row(running=1, complete=9), TEN)
    assert not placing.is_over(row(complete=9), TEN)


class TestLater:
    def test_what_comes_later_gets_what_the_others_leave(self) -> None:
        loads = {
            "retrained": replace(NOTHING, trials=10, fresh=10),
            "search": replace(NOTHING, trials=9, running=1),
        }
        limits = {"retrained": Limits(0, None, None, later=True), "search": Limits(10, None, None)}
        assert placing.shares(loads, limits, 1, 3) == {"search": 1}
        assert placing.shares(loads, limits, 5, 3) == {"search": 1, "retrained": 4}
        full = {**limits, "search": Limits(10, None, 1)}
        assert placing.shares(loads, full, 3, 3) == {"retrained": 3}

    def test_nothing_new_is_made_where_nothing_may(self) -> None:
        limits = Limits(0, None, None, later=True)
        assert placing.starts(replace(NOTHING, trials=3, fresh=2), limits, 9, 3) == Starts(2, 0)
        assert not may_ever_start(replace(NOTHING, trials=3), limits)

    def test_those_that_come_later_advance_evenly(self) -> None:
        later = Limits(0, None, None, later=True)
        loads = {"a": replace(NOTHING, trials=4, fresh=4), "b": replace(NOTHING, trials=2, fresh=2)}
        assert placing.shares(loads, {"a": later, "b": later}, 3, 3) == {"a": 2, "b": 1}
        assert placing.started(NOTHING, later) == 0


class TestDecided:
    DONE = replace(NOTHING, trials=10, epochs=30, committed=30)

    def test_nothing_runs_and_nothing_may_start(self) -> None:
        assert placing.is_decided(self.DONE, TEN)

    @pytest.mark.parametrize("change", [{"trials": 9}, {"running": 1}, {"interrupted": 1}, {"fresh": 1}])
    def test_what_may_still_change_the_winner(self, change: dict[str, int]) -> None:
        assert not placing.is_decided(replace(self.DONE, **change), TEN)

    def test_points_of_a_grid_that_the_epochs_leave_out(self) -> None:
        assert placing.is_decided(replace(self.DONE, fresh=2), Limits(10, 30, None))
