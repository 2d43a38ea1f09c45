"""One firing, from its claim to its end, with a clock that is moved and a process that does as told."""

from __future__ import annotations

from typing import Any

import pytest

from search.schedules import firing as firings
from search.schedules.firing import AGAIN_AFTER, ASK_FOR, MOST_STARTS, TERM_FOR, FiringRun
from search.schedules.naming import seed_of
from storage.database import Database
from storage.schedules import LEASE_SECONDS
from tests.contracts.schedules import SPEC, Bench, fire


def begin(database: Database, **changes: Any) -> tuple[Bench, FiringRun]:
    """A firing that was claimed, and whose process was started."""
    bench = Bench(database, **changes)
    fire(bench.schedules, bench.schedule)
    run = claim(bench)
    assert run.look() is None
    return bench, run


def claim(bench: Bench) -> FiringRun:
    claimed = bench.schedules.claim(bench.schedule.id, "me")
    assert claimed is not None
    return FiringRun(bench.schedules, bench.schedule, claimed, bench.launcher, bench.said.append, tell=True)


def stop_asked(bench: Bench, name: str = "nightly.g1") -> bool:
    return bench.experiments.get(name).stop_requested


def test_a_new_generation_runs_under_its_own_name_and_seed(database: Database) -> None:
    bench, run = begin(database)
    [file] = bench.launcher.files
    assert (file["experiment"], file["seed"]) == ("nightly.g1", seed_of("nightly", 1, 7))
    bench.launcher.ends()
    assert run.look() == "finished"
    ended = bench.newest()
    assert (ended.state, ended.experiment, ended.reason) == ("finished", "nightly.g1", None)
    assert ended.report == "/reports/nightly.g1/report.html"


def test_an_experiment_is_run_on(database: Database) -> None:
    bench, run = begin(database, each="continue")
    assert bench.launcher.files == [SPEC]
    bench.launcher.ends("stopped", 1)
    assert run.look() == "stopped"
    fire(bench.schedules, bench.schedule)
    again = claim(bench)
    assert again.look() is None
    bench.launcher.ends()
    assert again.look() == "finished"
    assert len(bench.launcher.children) == 2


def test_where_nothing_is_left_to_do_nothing_starts(database: Database) -> None:
    bench, run = begin(database, each="continue")
    bench.launcher.ends()
    run.look()
    fire(bench.schedules, bench.schedule)
    assert claim(bench).look() == "finished"
    assert bench.newest().reason == "nothing was left to do"
    assert bench.newest().report is None
    assert len(bench.launcher.children) == 1


def test_a_schedule_that_asks_for_more_runs_a_finished_experiment_on(database: Database) -> None:
    bench, run = begin(database, each="continue")
    bench.launcher.ends()
    run.look()
    more = bench.schedule.settings
    grown = type(more)(
        **{name: getattr(more, name) for name in more.__dataclass_fields__}
        | {"spec": {**SPEC, "replicates": 9}}
    )
    bench.schedule, _ = bench.schedules.declare("nightly", grown, replace=True)
    fire(bench.schedules, bench.schedule)
    assert claim(bench).look() is None
    assert bench.launcher.files[-1]["replicates"] == 9


# Bounds


def test_the_budget_asks_then_insists_then_kills(database: Database) -> None:
    bench, run = begin(database, budget_seconds=600.0)
    child = bench.launcher.children[0]
    child.obeys = False
    bench.move(590)
    run.look()
    assert not stop_asked(bench)
    bench.move(15)
    run.look()
    assert stop_asked(bench)
    assert (child.asked, child.killed) == (0, False)
    bench.move(ASK_FOR.total_seconds() - 5)
    run.look()
    assert child.asked == 0
    bench.move(10)
    run.look()
    assert (child.asked, child.killed) == (1, False)
    bench.move(TERM_FOR.total_seconds() + 1)
    run.look()
    assert child.killed
    assert run.look() == "out_of_budget"
    assert bench.newest().reason == "its budget of 0.1667 hours is used up"


def test_a_run_that_ends_in_order_at_the_budget_is_out_of_budget(database: Database) -> None:
    bench, run = begin(database, budget_seconds=60.0)
    bench.move(61)
    run.look()
    bench.launcher.ends("stopped", 1)
    assert run.look() == "out_of_budget"


def test_a_run_that_came_to_its_end_meanwhile_is_finished(database: Database) -> None:
    bench, run = begin(database, budget_seconds=60.0)
    bench.move(61)
    run.look()
    bench.launcher.ends("finished", 0)
    assert run.look() == "finished"


def test_a_run_that_takes_the_request_back_is_asked_again(database: Database) -> None:
    """A controller that begins forgets what was asked of the one before."""
    bench, run = begin(database, budget_seconds=60.0)
    bench.move(61)
    run.look()
    bench.experiments.request_stop(bench.experiments.get("nightly.g1").id, flag=False)
    run.look()
    assert stop_asked(bench)


def test_the_budget_counts_all_processes_together(database: Database) -> None:
    bench, run = begin(database, budget_seconds=600.0)
    bench.move(400)
    run.look()
    run.leave("going")
    assert run.look() == "queued"
    bench.move(7200)
    again = claim(bench)
    again.look()
    bench.move(190)
    again.look()
    assert not stop_asked(bench)
    bench.move(15)
    again.look()
    assert stop_asked(bench)


def test_no_progress_ends_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, run = begin(database, stalled_seconds=600.0)
    mark = (1, 0)
    monkeypatch.setattr(firings, "progress_mark", lambda _rows: mark)
    bench.move(550)
    run.look()
    bench.move(550)
    run.look()
    assert not stop_asked(bench), "the epoch in between began the wait anew"
    bench.move(60)
    run.look()
    assert stop_asked(bench)
    bench.launcher.ends("stopped", 1)
    assert run.look() == "stalled"
    assert "no epoch and no trial ended for 10 minutes" in bench.newest().reason


def test_removing_the_schedule_stops_what_runs(database: Database) -> None:
    bench, run = begin(database)
    bench.schedules.remove("nightly")
    run.look()
    assert stop_asked(bench)
    bench.launcher.ends("stopped", 1)
    assert run.look() == "stopped"


def test_one_that_never_made_its_experiment_is_told_to_end(database: Database) -> None:
    bench = Bench(database, budget_seconds=60.0)
    bench.launcher.makes = False
    fire(bench.schedules, bench.schedule)
    run = claim(bench)
    run.look()
    bench.move(61)
    run.look()
    assert bench.launcher.children[0].asked == 1
    assert run.look() == "out_of_budget"


# Other ends


@pytest.mark.parametrize(
    ("stored", "code", "state", "reason"),
    [
        ("finished", 0, "finished", None),
        ("finished", 1, "finished", "it ended with exit code 1: see its log"),
        ("stopped", 1, "stopped", "somebody asked it to stop"),
        ("failed", 1, "failed", "it ended with exit code 1: see its log"),
        ("running", 2, "failed", "it ended with exit code 2: see its log"),
        ("running", 4, "skipped", "somebody else was running nightly.g1, or it differs from the file"),
    ],
)
def test_how_it_ended(database: Database, stored: str, code: int, state: str, reason: str | None) -> None:
    bench, run = begin(database)
    bench.launcher.ends(stored, code)
    assert run.look() == state
    assert (bench.newest().state, bench.newest().reason) == (state, reason)


def test_an_experiment_of_which_every_trial_failed_has_failed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, run = begin(database)
    results = firings.Results(1, "value", "minimize", {}, {"failed": 3, "complete": 0, "pruned": 0})
    monkeypatch.setattr(firings, "results_of", lambda *_: results)
    bench.launcher.ends("finished", 1)
    assert run.look() == "failed"
    assert bench.newest().reason == "every trial failed"


@pytest.mark.parametrize("code", [143, 130, -15, -2])
def test_a_process_that_was_told_to_end_gives_the_firing_back(database: Database, code: int) -> None:
    bench, run = begin(database)
    bench.launcher.ends("stopped", code)
    assert run.look() == "queued"
    assert bench.newest().state == "queued"
    assert claim(bench).look() is None


@pytest.mark.parametrize("code", [-9, 5, 137])
def test_a_process_that_dies_is_started_again_after_a_while(database: Database, code: int) -> None:
    bench, run = begin(database)
    for start in range(1, MOST_STARTS):
        bench.launcher.ends(None, code)
        assert run.look() is None
        assert run.look() is None
        assert len(bench.launcher.children) == start
        bench.move(AGAIN_AFTER.total_seconds() + 1)
        assert run.look() is None
        assert len(bench.launcher.children) == start + 1
    bench.launcher.ends(None, code)
    assert run.look() == "failed"


def test_a_process_that_can_not_be_started_is_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(database)
    fire(bench.schedules, bench.schedule)
    run = claim(bench)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(bench.launcher, "start", full)
        assert run.look() is None
    assert "can't be started: No space left on device" in bench.said[-1]
    bench.move(AGAIN_AFTER.total_seconds() + 1)
    assert run.look() is None
    bench.launcher.ends()
    assert run.look() == "finished"


def test_a_removed_schedule_starts_nothing_again(database: Database) -> None:
    bench, run = begin(database)
    bench.launcher.ends(None, -9)
    run.look()
    bench.schedules.remove("nightly")
    assert run.look() == "stopped"
    assert len(bench.launcher.children) == 1


def test_a_firing_that_kills_its_processes_is_given_up(database: Database) -> None:
    bench, _ = begin(database)
    for _ in range(MOST_STARTS - 1):
        bench.move(LEASE_SECONDS + 1)
        assert claim(bench).look() is None
    bench.move(LEASE_SECONDS + 1)
    assert claim(bench).look() == "failed"
    assert bench.newest().reason == "the processes that ran it died 3 times"
    assert len(bench.launcher.children) == MOST_STARTS


def test_after_a_silent_process_the_experiment_may_still_be_held(database: Database) -> None:
    """Its run is ending in order; the one that took over waits for that instead of giving up."""
    bench, _ = begin(database)
    bench.move(LEASE_SECONDS + 1)
    second = claim(bench)
    second.look()
    bench.launcher.ends(None, 4)
    assert second.look() is None
    bench.move(AGAIN_AFTER.total_seconds() + 1)
    second.look()
    bench.launcher.ends()
    assert second.look() == "finished"


def test_who_lost_the_firing_ends_its_process_and_stores_nothing(database: Database) -> None:
    bench, first = begin(database)
    bench.move(LEASE_SECONDS + 1)
    second = claim(bench)
    second.look()
    assert first.look() == "queued"
    assert bench.launcher.children[0].asked == 1
    bench.launcher.ends()
    assert second.look() == "finished"
    assert first.look() == "queued"
    assert bench.newest().state == "finished"


def test_leaving_gives_the_firing_back_once_the_process_has_ended(database: Database) -> None:
    bench, run = begin(database)
    child = bench.launcher.children[0]
    child.obeys = False
    run.leave("asked to end by SIGTERM")
    run.leave("again")
    assert child.asked == 1
    assert run.look() is None
    child.code = 1
    assert run.look() == "queued"
    assert bench.newest().reason == "asked to end by SIGTERM"


def test_a_run_that_finished_while_leaving_is_finished(database: Database) -> None:
    bench, run = begin(database)
    bench.launcher.children[0].obeys = False
    run.leave("asked to end by SIGTERM")
    bench.launcher.ends()
    assert run.look() == "finished"


def test_leaving_before_anything_began(database: Database) -> None:
    bench = Bench(database)
    fire(bench.schedules, bench.schedule)
    run = claim(bench)
    run.leave("going")
    assert run.look() == "queued"
    assert bench.launcher.children == []


def test_a_note_goes_out_only_where_somebody_is_to_be_told(database: Database) -> None:
    bench, run = begin(database)
    bench.launcher.ends()
    run.look()
    assert bench.outbox.take() is None
