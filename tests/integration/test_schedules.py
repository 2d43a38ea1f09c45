"""Firings in real processes: told to leave, killed, out of their budget, fired twice at once."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from storage import queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.schedules import Schedules
from tests.contracts.processes import ended, until
from tests.contracts.shoal_command import Shoal

pytestmark = pytest.mark.slow

FILE = """
experiment: nightly
seed: 1
objective: {function: mine:slowly, direction: minimize, worst: 400}
metric: value
allow_imports: [mine]
fixed: {epochs: 4}
space:
  x1: {low: -5.0, high: 10.0}
  x2: {low: 0.0, high: 15.0}
methods: {random: {}}
replicates: 1
budget: {trials: TRIALS}
pruner: none
comparison: {retrain: {seeds: 0}}
"""


OBJECTIVE = """
import select
from pathlib import Path

from search.examples.analytic import branin

def slowly(config, *, seed, epochs):
    for value in branin(config, seed=seed, epochs=epochs):
        if Path("PACED").exists():
            select.select([], [], [], 0.1)
        yield value
"""


@pytest.fixture
def paced(tmp_path: Path) -> Path:
    """While this file exists an epoch takes a tenth of a second, so that a run is met in its midst."""
    path = tmp_path / "paced"
    path.touch()
    return path


@pytest.fixture
def shoal(database: Database, tmp_path: Path) -> Shoal:
    (tmp_path / "mine.py").write_text(OBJECTIVE.replace("PACED", str(tmp_path / "paced")))
    return Shoal(
        tmp_path,
        os.environ | {URL_VARIABLE: database.url, "NO_COLOR": "1", "PYTHONPATH": str(tmp_path)},
    )


def declare(shoal: Shoal, trials: int, *options: str) -> None:
    shoal.write("nightly.yaml", FILE.replace("TRIALS", str(trials)))
    shoal("schedule", "nightly.yaml", "--cron", "* * * * *", "--in-process", *options)


def finished_trials(database: Database, name: str = "nightly.g1") -> int:
    """Trials that are complete; 0 before there is an experiment."""
    known = {record.name: record.id for record in Experiments(database).list()}
    return sum(row.complete for row in queries.progress(database, known[name])) if name in known else 0


def runs(fire: subprocess.Popen[str]) -> list[psutil.Process]:
    """What a firing started."""
    return psutil.Process(fire.pid).children(recursive=True)


def test_a_firing_that_is_told_to_leave_is_taken_up_again(
    shoal: Shoal, database: Database, paced: Path
) -> None:
    declare(shoal, 150)
    fire = shoal.start("schedule", "fire", "nightly")
    until(lambda: finished_trials(database) >= 3, run=fire)
    children = runs(fire)
    assert children
    fire.send_signal(signal.SIGTERM)
    said = ended(fire)
    assert fire.returncode == 143, said
    assert not any(child.is_running() for child in children), "its run outlived it"
    schedules = Schedules(database)
    [left] = schedules.firings(schedules.get("nightly").id)
    assert (left.state, left.reason) == ("queued", "asked to end by SIGTERM")
    before = finished_trials(database)
    assert before < 150
    paced.unlink()
    done = shoal("schedule", "fire", "nightly")
    assert "nightly generation 2 is skipped: generation 1 had not run to its end" in done.stderr
    firings = schedules.firings(left.schedule_id)
    assert [one.state for one in firings] == ["skipped", "finished"]
    assert firings[-1].attempts == 2
    assert finished_trials(database) == 150
    assert check_history(database, None) == []
    assert Path(str(firings[-1].report)).is_file()


def test_the_run_of_a_firing_does_not_outlive_a_killed_watcher(
    shoal: Shoal, database: Database, paced: Path
) -> None:
    declare(shoal, 100)
    fire = shoal.start("schedule", "fire", "nightly")
    until(lambda: finished_trials(database) >= 3, run=fire)
    children = runs(fire)
    fire.kill()
    said = ended(fire)
    until(lambda: not any(child.is_running() for child in children))
    assert Experiments(database).get("nightly.g1").state == "stopped", said
    paced.unlink()
    with database.begin() as connection:
        # Its lease ends after a minute; nobody wants to wait for that here.
        connection.execute(text("UPDATE shoal.firings SET lease_until = now() - interval '1 second'"))
    shoal("schedule", "fire", "nightly")
    schedules = Schedules(database)
    assert schedules.firings(schedules.get("nightly").id)[-1].state == "finished"
    assert finished_trials(database) == 100
    assert check_history(database, None) == []


def test_a_budget_ends_a_run_in_order(shoal: Shoal, database: Database, paced: Path) -> None:
    declare(shoal, 100_000, "--budget-hours", "5")
    fire = shoal.start("schedule", "fire", "nightly")
    until(lambda: finished_trials(database) >= 3, run=fire)
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.firings SET spent_seconds = 5 * 3600"))
    children = runs(fire)
    said = ended(fire)
    assert fire.returncode == 0, said
    assert "budget of 5 hours is used up; asking nightly.g1 to stop" in said
    assert not any(child.is_running() for child in children), "it holds what it held"
    schedules = Schedules(database)
    [firing] = schedules.firings(schedules.get("nightly").id)
    assert firing.state == "out_of_budget"
    record = Experiments(database).get("nightly.g1")
    assert record.state == "stopped"
    assert sum(row.running for row in queries.progress(database, record.id)) == 0
    assert check_history(database, None) == []


def test_two_timers_at_once_fire_once(shoal: Shoal, database: Database) -> None:
    declare(shoal, 20)
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.schedules SET decided_until = now() - interval '90 seconds'"))
    # Both may be a minute apart to the schedule; of each minute one fires, and the other says how that went.
    both = [shoal.start("schedule", "fire", "nightly", "--if-due") for _ in range(2)]
    said = [ended(fire) for fire in both]
    assert [fire.returncode for fire in both] == [0, 0], said
    schedules = Schedules(database)
    firings = schedules.firings(schedules.get("nightly").id)
    assert len({one.scheduled_for for one in firings}) == len(firings) <= 2
    assert sum(one.state == "finished" for one in firings) >= 1
    assert sum("starts nightly.g1" in words for words in said) == 1
