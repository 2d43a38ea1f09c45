"""The loop, and firing once: what fires, what is skipped or waits, who takes over, who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from search.schedules.scheduler import BUSY_SECONDS, IDLE_SECONDS, Fired, Once, Postman
from search.schedules.webhook import SECRET_VARIABLE, deliver_one, verify
from storage.database import Database
from storage.schedules import LEASE_SECONDS
from tests.contracts.processes import PATIENCE
from tests.contracts.schedules import SECRET, Bench, Receiver, fire, receiver, settings


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    with receiver() as made:
        yield made


def deliver_all(bench: Bench) -> None:
    while deliver_one(bench.outbox) is not None:
        pass


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_three_firings_of_which_the_second_overlaps(database: Database, hook: Receiver, overlap: str) -> None:
    """Every minute: the first takes 90 s, so the second comes while it runs."""
    bench = Bench(database, overlap=overlap, webhook=hook.url, options={"webhook_skipped": True})
    bench.tick()
    assert bench.states() == []
    bench.tick(seconds=30)  # 0:00
    assert bench.states() == ["running"]
    bench.tick(seconds=60)  # 1:00
    assert bench.states() == ["running", "skipped" if overlap == "skip" else "queued"]
    assert len(bench.launcher.children) == 1, "two of a schedule never run at once"
    bench.tick(seconds=30)  # 1:30
    bench.launcher.ends()
    bench.tick()
    bench.tick()
    if overlap == "skip":
        assert bench.states() == ["finished", "skipped"]
    else:
        assert bench.states() == ["finished", "running"]
        bench.launcher.ends()
        bench.tick(seconds=20)
    bench.tick(seconds=30)  # past 2:00
    bench.launcher.ends()
    bench.tick()
    expected = ["finished", "skipped" if overlap == "skip" else "finished", "finished"]
    assert bench.states() == expected
    ran = [child.experiment for child in bench.launcher.children]
    assert ran == [f"nightly.g{n}" for n, state in enumerate(expected, 1) if state == "finished"]
    deliver_all(bench)
    notes = hook.bodies()
    assert {note["generation"]: note["state"] for note in notes} == dict(enumerate(expected, 1))
    for headers, sent in hook.received:
        signed = headers["X-Shoal-Signature"]
        assert verify(SECRET.encode(), headers["X-Shoal-Timestamp"], sent, signed)
    assert len({note["id"] for note in notes}) == 3


def test_several_schedulers_fire_once(database: Database) -> None:
    bench = Bench(database)
    others = [bench.another() for _ in range(3)]
    bench.move(31)
    for scheduler in [bench.scheduler, *others]:
        scheduler.tick()
    assert bench.states() == ["running"]
    assert len(bench.launcher.children) == 1


def test_downtime_is_made_up_for_once(database: Database) -> None:
    bench = Bench(database)
    bench.tick(seconds=3600)
    assert bench.states() == ["running"]
    assert bench.newest().missed == 59
    assert any("59 before it were missed" in said for said in bench.said)


def test_a_firing_that_is_too_late_is_told_as_missed(database: Database, hook: Receiver) -> None:
    bench = Bench(database, late_seconds=1.0, webhook=hook.url, options={"webhook_skipped": True})
    bench.tick(seconds=55)  # 25 s after the minute
    assert bench.states() == ["missed"]
    deliver_all(bench)
    assert [note["state"] for note in hook.bodies()] == ["missed"]
    assert bench.launcher.children == []


def test_a_paused_schedule_fires_nothing_and_makes_up_for_nothing(database: Database) -> None:
    bench = Bench(database)
    bench.schedules.pause("nightly")
    bench.tick(seconds=600)
    assert bench.states() == []
    bench.schedules.resume("nightly")
    bench.tick()
    assert bench.states() == []
    bench.tick(seconds=60)
    assert bench.states() == ["running"]
    assert bench.newest().missed == 0


def test_what_a_dead_scheduler_ran_is_taken_over(database: Database) -> None:
    bench = Bench(database, overlap="skip")
    bench.tick(seconds=31)
    other = bench.another()
    bench.move(LEASE_SECONDS - 10)
    other.tick()
    assert other.running == {}
    bench.move(15)
    other.tick()
    assert list(other.running) == [bench.schedule.id]
    assert bench.schedules.firings(bench.schedule.id)[-1].attempts == 2


def test_only_the_named_schedules_are_looked_after(database: Database) -> None:
    bench = Bench(database)
    bench.schedules.declare("other", settings())
    bench.scheduler = type(bench.scheduler)(
        bench.schedules, bench.launcher, bench.said.append, names=["other"]
    )
    bench.tick(seconds=61)
    assert bench.states() == []
    assert [child.experiment for child in bench.launcher.children] == ["other.g1"]


def test_a_schedule_that_can_not_be_read_keeps_no_other_from_firing(database: Database) -> None:
    """Another machine may know a time zone that this one does not."""
    bench = Bench(database)
    for name, changes in (("first", {"timezone": "Mars/Base"}), ("zeta", {"cron": "every night"})):
        bench.schedules.declare(name, settings(**changes))
    bench.tick(seconds=31)
    bench.tick(seconds=1)
    assert bench.states() == ["running"]
    assert [said.split(" can't")[0] for said in bench.said if "can't be fired here" in said] == [
        "first",
        "zeta",
    ]


def test_it_sleeps_until_the_next_firing_but_not_long(database: Database) -> None:
    bench = Bench(database)
    bench.tick()
    assert bench.scheduler.wait_seconds() == IDLE_SECONDS
    bench.move(25)
    assert 1 < bench.scheduler.wait_seconds() < 6
    bench.tick(seconds=6)
    assert bench.scheduler.wait_seconds() == BUSY_SECONDS


def test_what_waits_for_its_turn_is_begun_soon(database: Database) -> None:
    bench = Bench(database, overlap="queue")
    bench.tick(seconds=31)
    bench.tick(seconds=60)
    bench.launcher.ends()
    bench.tick()
    assert bench.states() == ["finished", "queued"]
    assert bench.scheduler.wait_seconds() == BUSY_SECONDS
    bench.tick()
    assert bench.states() == ["finished", "running"]
    bench.launcher.ends()
    bench.tick()
    bench.tick()
    assert bench.scheduler.wait_seconds() == IDLE_SECONDS, "nothing waits any more"


def test_leaving_gives_everything_back(database: Database) -> None:
    bench = Bench(database)
    bench.tick(seconds=31)
    bench.scheduler.leave("asked to end by SIGTERM")
    bench.scheduler.settle()
    assert bench.scheduler.running == {}
    assert bench.states() == ["queued"]
    bench.another().tick()
    assert bench.states() == ["running"]


# Once


class OnceBench(Bench):
    """Fires once; `then` is called at each wait, and does what happens meanwhile."""

    def fire(self, then: Callable[[int], object], *, if_due: bool = False) -> Fired:
        once = Once(self.schedules, self.schedule, self.launcher, self.said.append)
        waits = iter(range(100))
        self.once = once
        return once.fire(if_due=if_due, wait=lambda _seconds: then(next(waits)))


def test_fire_runs_one_firing_to_its_end(database: Database) -> None:
    bench = OnceBench(database)
    fired = bench.fire(lambda _: bench.launcher.ends())
    assert fired.state == "finished"
    assert fired.firing is not None
    assert fired.firing.manual


def test_fire_if_due_fires_each_time_once(database: Database) -> None:
    bench = OnceBench(database)
    assert bench.fire(lambda _: bench.launcher.ends(), if_due=True).firing is None
    bench.move(31)
    first = bench.fire(lambda _: bench.launcher.ends(), if_due=True)
    again = bench.fire(lambda _: bench.launcher.ends(), if_due=True)
    assert first.state == again.state == "finished"
    assert first.firing == again.firing
    assert len(bench.launcher.children) == 1


def test_fire_if_due_says_again_how_it_ended(database: Database) -> None:
    """A CronJob's pod that failed is started again, and must not succeed by doing nothing."""
    bench = OnceBench(database)
    bench.move(31)
    bench.fire(lambda _: bench.launcher.ends("failed", 1), if_due=True)
    assert bench.fire(lambda _: None, if_due=True).state == "failed"


def test_fire_if_due_of_a_paused_schedule_does_nothing(database: Database) -> None:
    bench = OnceBench(database)
    bench.schedule = bench.schedules.pause("nightly")
    bench.move(61)
    assert bench.fire(lambda _: None, if_due=True).firing is None


def test_fire_skips_while_another_process_runs_one(database: Database) -> None:
    bench = OnceBench(database)
    bench.tick(seconds=31)
    fired = bench.fire(lambda _: None)
    assert fired.state == "skipped"
    assert bench.states() == ["running", "skipped"]


def test_fire_waits_for_its_turn(database: Database) -> None:
    bench = OnceBench(database, overlap="queue")
    bench.tick(seconds=31)

    def then(wait: int) -> None:
        if wait == 2:
            bench.launcher.ends()
            bench.scheduler.settle()
        elif wait > 2:
            bench.launcher.ends()

    fired = bench.fire(then)
    assert fired.state == "finished"
    assert bench.states() == ["finished", "finished"]
    assert [child.experiment for child in bench.launcher.children] == ["nightly.g1", "nightly.g2"]


def test_fire_takes_up_what_was_left_behind(database: Database) -> None:
    """A job that was taken away comes again, and the next firing time has come meanwhile."""
    bench = OnceBench(database, overlap="skip")
    bench.move(31)

    def leave(_wait: int) -> None:
        bench.once.leaving = "asked to end by SIGTERM"

    assert bench.fire(leave, if_due=True).state == "queued"
    bench.move(60)
    fired = bench.fire(lambda _: bench.launcher.ends(), if_due=True)
    assert fired.state == "finished"
    assert bench.states() == ["finished", "skipped"]
    assert bench.schedules.firings(bench.schedule.id)[-1].attempts == 2


def test_fire_runs_the_older_one_first(database: Database) -> None:
    bench = OnceBench(database, overlap="queue")
    fire(bench.schedules, bench.schedule)
    fired = bench.fire(lambda _: bench.launcher.ends())
    assert fired.firing is not None
    assert (fired.firing.generation, fired.state) == (2, "finished")
    assert [child.experiment for child in bench.launcher.children] == ["nightly.g1", "nightly.g2"]


def test_a_schedule_that_is_paused_keeps_nobody_waiting(database: Database) -> None:
    bench = OnceBench(database, overlap="queue")
    bench.tick(seconds=31)
    bench.move(40)
    bench.scheduler.settle()  # it lives, and holds the first
    bench.move(20)
    fired = bench.fire(lambda _: bench.schedules.pause("nightly"), if_due=True)
    assert fired.state == "queued"


# Notes


def test_the_postman_sends_and_waits_for_what_is_due_soon(database: Database, hook: Receiver) -> None:
    bench = OnceBench(database, webhook=hook.url)
    hook.answers.append((503, {"Retry-After": "3600"}))
    bench.fire(lambda _: bench.launcher.ends())
    postman = Postman(bench.outbox, bench.said.append)
    postman.start()
    assert postman.finish(seconds=PATIENCE) == 0
    assert len(hook.received) == 1
    assert any("did not arrive (127.0.0.1 answered 503); it is tried again" in said for said in bench.said)
    bench.move(4000)
    again = Postman(bench.outbox, bench.said.append)
    again.start()
    assert again.finish(seconds=PATIENCE) == 0
    assert len(hook.received) == 2
    assert not postman.is_alive()
    assert not again.is_alive()
