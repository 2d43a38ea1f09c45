"""Workers that are killed, stopped or starved at the worst moment; each time with the whole history."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.failpoints import VARIABLE as FAILPOINTS
from storage.ledger import MAX_ATTEMPTS
from tests.contracts.processes import PATIENCE
from tests.faults.lab import Lab, lab_of, spec_of, until
from tests.faults.worker_process import WorkerProcess

pytestmark = pytest.mark.slow


def died(process: WorkerProcess) -> None:
    """It was killed, and did not end in another way."""
    assert process.wait(PATIENCE) == -signal.SIGKILL


def take_back(lab: Lab) -> int:
    """As a controller on another machine does, which knows of no process here: once leases have run out."""
    lab.run_out("w")
    return len(lab.running.ledger.expire(lab.running.experiment.id))


def test_killed_in_the_middle_of_an_epoch(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("gated"), folder) as lab:
        with lab.run(workers=2) as run:
            until(lab.reached)
            os.kill(lab.reached()[0], signal.SIGKILL)
            lab.open_gate()
            assert run.result().state == "finished"
        lab.sound(complete=3)
        assert lab.events()["expired"] == 1
        assert len(lab.trained()) == 3 * 3 + 1, "its function is called again for what it had said before"


def test_killed_between_a_claim_and_the_first_beat(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of(points=1), folder) as lab:
        with lab.worker(**{FAILPOINTS: "ledger.claim.committed:kill"}) as worker:
            died(worker)
        assert [row.state for row in lab.rows()] == ["running"]
        assert lab.trained() == []
        assert take_back(lab) == 1
        lab.finish()
        lab.sound(complete=1)
        assert [attempt.state for attempt in lab.attempts()] == ["lost", "complete"]


LAST_WRITE = 4
"""Of a trial of three epochs, alone: its values, then each epoch, the last one with the ending. All within
a third of a lease, so that no beat is a write of its own."""


@pytest.mark.parametrize(
    ("place", "states"),
    [("ledger.write.before", ["lost", "complete"]), ("ledger.write.committed", ["complete"])],
)
def test_killed_around_the_commit_of_a_result(
    database: Database, folder: Path, place: str, states: list[str]
) -> None:
    """Before: nothing is recorded, and it is run again. After: it is recorded once, and never run again."""
    with lab_of(database, spec_of(points=1), folder) as lab:
        with lab.worker(**{FAILPOINTS: f"{place}:kill@{LAST_WRITE}"}) as worker:
            died(worker)
        assert len(lab.trained()) == 3
        assert [(row.state, row.epochs) for row in lab.rows()] == [
            ("running", 2) if len(states) == 2 else ("complete", 3)
        ]
        lab.finish()  # on this machine the dead are known
        lab.sound(complete=1)
        assert [attempt.state for attempt in lab.attempts()] == states
        assert len(lab.trained()) == 3 * len(states), "what was committed is not trained again"


def test_killed_while_the_server_works_on_the_result(database: Database, folder: Path) -> None:
    """Its last message is with the server, which waits for a lock: what it then commits counts, once."""
    with lab_of(database, spec_of("gated", points=1), folder) as lab:
        with lab.worker() as worker, database.own_connection() as other:
            until(lab.reached)
            with other.execution_options(isolation_level="READ COMMITTED").begin():
                other.execute(text("LOCK TABLE trial_values IN SHARE MODE"))
                lab.open_gate()
                waiting = (
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted "
                    "AND relation = CAST('trial_values' AS regclass))"
                )
                until(lambda: other.scalar(text(waiting)))
                worker.kill()
                died(worker)
                # Whoever looks for lost trials meanwhile passes over what is being written.
                assert lab.running.ledger.expire(lab.running.experiment.id, dead_workers=[1]) == []
        until(lambda: [row.state for row in lab.rows()] == ["complete"])
        lab.finish()
        lab.sound(complete=1)
        assert [attempt.state for attempt in lab.attempts()] == ["complete"]


def asleep_past_its_lease(lab: Lab, sleeper: WorkerProcess) -> None:
    until(lab.reached)
    os.kill(sleeper.pid, signal.SIGSTOP)
    lab.run_out("sleeper")
    lab.open_gate()


def written_too_late(lab: Lab) -> int:
    """Epochs and ends of first attempts beyond the deadline that each had when its worker was stopped."""
    return lab.count(
        "SELECT count(*) FROM shoal.attempts AS attempt JOIN shoal.epochs AS point "
        "ON point.trial_id = attempt.trial_id AND point.attempt = attempt.number "
        "WHERE attempt.number = 1 AND attempt.state = 'lost' AND point.written_at > attempt.deadline"
    )


def test_a_sleeper_whose_trials_others_have_is_refused(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("gated"), folder) as lab, lab.worker("sleeper") as sleeper:
        asleep_past_its_lease(lab, sleeper)
        lab.finish()
        before = lab.curves()
        assert lab.events()["refused"] == 0
        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.wait(PATIENCE) == 0, "there is nothing left for it"
        lab.sound(complete=3)
        assert lab.events()["refused"] > 0
        assert lab.curves() == before


def test_a_sleeper_is_refused_although_nobody_has_noticed(database: Database, folder: Path) -> None:
    """The deadline alone refuses it; then it starts over, under another lease."""
    with lab_of(database, spec_of("gated", points=1), folder) as lab, lab.worker("sleeper") as sleeper:
        asleep_past_its_lease(lab, sleeper)
        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.wait(PATIENCE) == 0
        assert lab.events()["refused"] > 0
        assert written_too_late(lab) == 0
        lab.finish()
        lab.sound(complete=1)
        assert [attempt.state for attempt in lab.attempts()] == ["lost", "complete"]


def test_a_poison_trial_is_given_up_and_the_study_goes_on(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("steady", "kills", points=2), folder) as lab:
        lab.finish()
        lab.sound(complete=2, failed=2)
        for row in lab.rows():
            if row.params["kind"] == "kills":
                assert f"{MAX_ATTEMPTS} workers ended" in str(row.reason)
                assert [one.state for one in lab.attempts(row.number)] == ["lost"] * MAX_ATTEMPTS


def test_a_hung_trial_is_given_up_and_the_study_goes_on(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("steady", "hangs", points=1), folder) as lab:
        lab.finish(hang_seconds=2.0)
        lab.sound(complete=1, failed=1)
        (hung,) = [row for row in lab.rows() if row.state == "failed"]
        assert "hung: the engine did not come back" in str(hung.reason)
        assert [one.state for one in lab.attempts(hung.number)] == ["failed"] * MAX_ATTEMPTS


def test_a_worker_out_of_memory_tries_again_and_goes_on(database: Database, folder: Path) -> None:
    """A limit on its memory, as a container has one: the worker lives, its other trials are complete."""
    with lab_of(database, spec_of("steady", "memory", points=1), folder) as lab:
        with lab.worker(limits={"memory": 3 * 2**30}) as worker:
            assert worker.wait(PATIENCE) == 0
        lab.sound(complete=1, failed=1)
        (starved,) = [row for row in lab.rows() if row.state == "failed"]
        assert "MemoryError" in str(starved.reason)
        assert [one.state for one in lab.attempts(starved.number)] == ["failed"] * MAX_ATTEMPTS


def test_nan_and_an_exception_end_their_own_trials_alone(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("steady", "nan", "raises", points=2), folder) as lab:
        with lab.worker() as worker:
            assert worker.wait(PATIENCE) == 0
        lab.sound(complete=4, failed=2)
        diverged = [row for row in lab.rows() if row.diverged]
        assert [(row.params["kind"], row.value, row.epochs) for row in diverged] == [("nan", -1.0, 2)] * 2
        failed = [row for row in lab.rows() if row.state == "failed"]
        assert all("this trial's data are broken" in str(row.reason) for row in failed)
        assert all(len(lab.attempts(row.number)) == 1 for row in failed), "its own fault: once is enough"
