"""Who may do what at the same time: controllers, endings of one trial, clients with other clocks."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from storage.batched_ledger import BatchedLedger
from storage.database import URL_VARIABLE, Database
from storage.embedded import EmbeddedPostgres
from storage.experiments import Experiments
from storage.ledger import LEASE_VARIABLE, Ending, Lease, lease_seconds
from tests.contracts.processes import PATIENCE
from tests.contracts.shoal_command import COMMAND
from tests.faults.lab import Lab, lab_of, spec_of, until
from tests.faults.objectives import PACE_VARIABLE
from tests.faults.worker_process import ROOT

pytestmark = pytest.mark.slow


@contextmanager
def resumed(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """`shoal resume` of the experiment, as a user starts it."""
    with subprocess.Popen(
        [COMMAND, "resume", "faults", "--in-process", "--report", str(lab.folder / "report")],
        cwd=ROOT,
        env=os.environ | {URL_VARIABLE: lab.database.url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_second_controller_exits_with_4(database: Database, folder: Path) -> None:
    with lab_of(database, spec_of("gated"), folder) as lab, resumed(lab) as first:
        until(lab.reached, run=first)
        with resumed(lab) as second:
            said = second.communicate(timeout=PATIENCE)[1]
        assert second.returncode == 4, said
        assert "is being run by another process" in said
        lab.open_gate()
        said = first.communicate(timeout=PATIENCE)[1]
        assert first.returncode == 0, said
        lab.sound(complete=3)
        assert lab.events()["claimed"] == 3


def test_a_controller_is_the_only_one_also_after_a_restart(
    database: Database, folder: Path, server: EmbeddedPostgres
) -> None:
    """Its lock went with its connection; it takes it again."""
    with lab_of(database, spec_of("gated"), folder) as lab:
        with lab.run(workers=1) as run:
            until(lab.reached)
            experiments, record = Experiments(database), lab.running.experiment
            server.stop()
            server.start()
            until(lambda: experiments.controlled([record.id]))
            lab.open_gate()
            assert run.result().state == "finished"
        lab.sound(complete=3)


def end_together(url: str, lease: Lease, together: Any, endings: list[dict[str, Any]], place: int) -> None:
    """One of several processes that end a trial at the same moment."""
    with Database(url) as database:
        database.scalar("SELECT 1")
        together.wait()
        BatchedLedger(database).write(endings=[Ending(lease=lease, **endings[place])])


def test_of_four_endings_of_one_trial_one_wins(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, "600")  # for four processes to start in
    endings: list[dict[str, Any]] = [
        {"state": "complete", "value": 0.5},
        {"state": "complete", "value": 0.25},
        {"state": "failed", "reason": "it broke"},
        {"state": "failed", "reason": "it broke elsewhere"},
    ]
    with lab_of(database, spec_of(points=1), folder) as lab:
        ledger = lab.running.ledger
        (study,) = (name for _, _, name in lab.running.spec.studies())
        (lease,) = ledger.claim(study, ledger.register("w"), waiting=1, new=0)
        context = multiprocessing.get_context("spawn")
        together = context.Barrier(len(endings))
        processes = [
            context.Process(target=end_together, args=(database.url, lease, together, endings, place))
            for place in range(len(endings))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0] * len(endings)
        (row,) = lab.rows()
        assert row.state in ("complete", "failed")
        events = lab.events()
        assert (events["completed"] + events["failed"], events["refused"]) == (1, len(endings) - 1)
        if row.state == "complete":
            assert row.value in (0.5, 0.25)
        assert [attempt.state for attempt in lab.attempts()] == [row.state]


def libraries() -> list[Path]:
    """What moves a process's clock: that of the system, which minds threads, and that of the package."""
    found = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if package := importlib.util.find_spec("libfaketime"):
        found += [Path(str(package.origin)).parent / "vendor/libfaketime/src/libfaketime.so.1"]
    return found


def moves(library: Path) -> bool:
    """Whether it does so here: a library for other machines is passed over without a word."""
    moved = {"LD_PRELOAD": str(library), "FAKETIME": "-1h"}
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=os.environ | moved, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return said.returncode == 0 and float(said.stdout) < time.time() - 1800


@pytest.fixture(scope="session")
def library() -> Path | None:
    """One that moves clocks here."""
    return next(filter(moves, libraries()), None)


CLOCKS: dict[str, dict[str, str]] = {
    "an hour behind, west": {"TZ": "America/Los_Angeles", "PGTZ": "America/Los_Angeles", "FAKETIME": "-1h"},
    "an hour ahead, east": {"TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo", "FAKETIME": "+1h"},
    "right": {"TZ": "UTC"},
}


def clock(name: str, library: Path | None) -> dict[str, str]:
    """The environment of a worker with that clock; its zone alone without a library that moves it."""
    said = CLOCKS[name]
    if library and "FAKETIME" in said:
        return said | {"LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {key: value for key, value in said.items() if key != "FAKETIME"}


@pytest.mark.parametrize("moved", [False, True], ids=["zones", "clocks"])
def test_clocks_and_zones_of_workers_play_no_part(
    database: Database, folder: Path, library: Path | None, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moved and library is None:
        pytest.skip("no libfaketime that works here (Debian: apt install faketime)")
    chosen = library if moved else None
    monkeypatch.setenv(PACE_VARIABLE, "0.1")
    began = database.scalar("SELECT clock_timestamp()")
    with lab_of(database, spec_of(points=8), folder) as lab:
        with (
            lab.worker("behind", **clock("an hour behind, west", chosen)) as behind,
            lab.worker("ahead", **clock("an hour ahead, east", chosen)) as ahead,
            lab.worker("right", **clock("right", chosen)) as right,
        ):
            assert [process.wait(PATIENCE) for process in (behind, ahead, right)] == [0, 0, 0]
        lab.sound(complete=8)
        events = lab.events()
        assert events["claimed"] == 8
        assert events["expired"] == events["refused"] == 0
        _times_are_the_databases(lab, began)


def _times_are_the_databases(lab: Lab, began: datetime) -> None:
    with lab.database.begin() as connection:
        ended = connection.scalar(text("SELECT clock_timestamp()"))
        rows = connection.execute(
            text("SELECT started_at, ended_at, deadline, beaten_at FROM shoal.attempts")
        ).all()
        optunas = connection.execute(text("SELECT datetime_start, datetime_complete FROM trials")).all()
        workers = connection.execute(text("SELECT started_at, ended_at FROM shoal.workers")).all()
    for times in (*((row.started_at, row.ended_at) for row in rows), *map(tuple, workers)):
        assert began <= times[0] <= times[1] <= ended
    for row in rows:
        assert abs((row.deadline - row.beaten_at).total_seconds() - lease_seconds()) < 10
    for times in optunas:  # UTC without a zone
        assert began <= times[0].replace(tzinfo=UTC) <= times[1].replace(tzinfo=UTC) <= ended
    assert Counter(row.ended_at is None for row in rows) == {False: len(rows)}
