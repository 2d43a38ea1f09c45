"""Trials that are killed and go on, bit by bit as in peace, whatever became of their files."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.trials.broker import checkpoint_folder
from storage.database import Database
from storage.embedded import HOME_VARIABLE, EmbeddedPostgres
from tests.conftest import database_named, drop, on_server
from tests.contracts.held_training import FUSED, PLAIN
from tests.contracts.hold import Hold
from tests.contracts.processes import PATIENCE
from tests.faults.lab import Lab, digits_spec, lab_of, until
from tests.faults.worker_process import WorkerProcess

pytestmark = pytest.mark.slow

TRIALS = 3
KILLED_AFTER = 5
"""Stored epochs of a trial, so that some are saved and some are to come."""

Curves = dict[tuple[int, int], tuple[Any, ...]]


@contextmanager
def fresh_database(server: EmbeddedPostgres, template: str) -> Iterator[Database]:
    name = f"lab_{uuid.uuid4().hex}"
    on_server(server.start(), "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        with Database(database_named(server.start(), name)) as database:
            yield database
    finally:
        drop(server.start(), name)


@pytest.fixture(scope="module")
def in_peace(
    server: EmbeddedPostgres, empty_lab: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Curves]:
    """The curves of a run that nothing happens to, by trainer; run once."""
    found: dict[str, Curves] = {}

    def curves(trainer: str) -> Curves:
        if trainer not in found:
            folder = tmp_path_factory.mktemp("peace")
            with (
                fresh_database(server, empty_lab) as database,
                lab_of(database, digits_spec(budget={"trials": TRIALS}), folder, trainer) as lab,
            ):
                with lab.worker() as worker:
                    assert worker.wait(PATIENCE) == 0
                lab.sound(complete=TRIALS)
                found[trainer] = lab.curves()
        return found[trainer]

    return curves


def furthest(lab: Lab) -> int:
    """The last stored epoch of any trial that is not over."""
    return max((row.epochs for row in lab.rows() if row.state == "running"), default=0)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """For a worker that trains one trial, and waits in its middle."""
    made = Hold(tmp_path / "hold")
    made.at(KILLED_AFTER)
    return made


def killed_in_its_middle(lab: Lab, worker: WorkerProcess) -> None:
    until(lambda: furthest(lab) >= KILLED_AFTER)
    worker.kill()
    worker.wait()


def saved(lab: Lab) -> list[Path]:
    """Checkpoints of trials, those of later epochs first."""
    files = checkpoint_folder(lab.running.experiment).rglob("*.pt")
    return sorted(files, key=lambda path: int(path.stem.partition("-")[0]), reverse=True)


def first_epochs(lab: Lab) -> dict[int, int]:
    """Trial → the first epoch that its newest attempt wrote."""
    attempts: dict[int, dict[int, int]] = {}
    from storage.curves import Curves as Stored

    for point in Stored(lab.database).of_experiment(lab.running.experiment.id):
        of_trial = attempts.setdefault(point.trial_number, {})
        of_trial[point.attempt] = min(point.epoch, of_trial.get(point.attempt, point.epoch))
    return {number: of_trial[max(of_trial)] for number, of_trial in attempts.items()}


# The classes themselves: they measure nothing, so that the two experiments can't have chosen different ways.
@pytest.mark.parametrize(("trainer", "together"), [(PLAIN, 1), (FUSED, TRIALS)], ids=["plain", "fused"])
def test_a_killed_trial_goes_on_bit_by_bit(
    database: Database,
    folder: Path,
    in_peace: Callable[[str], Curves],
    hold: Hold,
    trainer: str,
    together: int,
) -> None:
    expected = in_peace(trainer)
    hold.at(KILLED_AFTER * together)
    with lab_of(database, digits_spec(budget={"trials": TRIALS}), folder, trainer) as lab:
        with lab.worker(**hold.environment()) as worker:
            killed_in_its_middle(lab, worker)
        assert saved(lab)
        lab.finish()
        lab.sound(complete=TRIALS)
        assert lab.curves() == expected
        assert max(first_epochs(lab).values()) > 1, "one went on in its middle"
        assert lab.events()["expired"] >= 1


def test_of_a_truncated_checkpoint_the_one_before_is_used(
    database: Database, folder: Path, in_peace: Callable[[str], Curves], hold: Hold
) -> None:
    expected = in_peace(PLAIN)
    with lab_of(database, digits_spec(budget={"trials": TRIALS}), folder, PLAIN) as lab:
        with lab.worker(**hold.environment()) as worker:
            killed_in_its_middle(lab, worker)
        (row,) = [row for row in lab.rows() if row.state == "running"]
        newest, before = [path for path in saved(lab) if path.parent.name == str(row.number)][:2]
        os.truncate(newest, newest.stat().st_size // 2)
        lab.finish()
        lab.sound(complete=TRIALS)
        assert lab.curves() == expected
        assert first_epochs(lab)[row.number] == int(before.stem.partition("-")[0]) + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of few bytes."""
    place = tmp_path / "small"
    place.mkdir()
    size = 96 * 1024
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a file system that is soon full")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _ends_in_peace_without_checkpoints(lab: Lab, expected: Curves, worker: WorkerProcess) -> None:
    assert worker.wait(PATIENCE) == 0
    said = lab.job().log("w").read_text(encoding="utf-8")
    assert said.count("checkpoints can't be written") == 1, said
    assert "Traceback" not in said
    lab.sound(complete=TRIALS)
    assert lab.curves() == expected


def test_a_full_disk_is_a_warning_and_the_older_checkpoint_stays(
    database: Database,
    folder: Path,
    in_peace: Callable[[str], Curves],
    hold: Hold,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills up after the first checkpoint: the trial trains on, and goes on from that one."""
    expected = in_peace(PLAIN)
    monkeypatch.setenv(HOME_VARIABLE, str(small_disk))
    hold.at(2)
    with lab_of(database, digits_spec(budget={"trials": TRIALS}), folder, PLAIN) as lab:
        with lab.worker(**hold.environment()) as worker:
            until(lambda: saved(lab))
            with suppress_full(), (small_disk / "others").open("wb", buffering=0) as file:
                while file.write(b"x" * 1024):
                    pass
            hold.at(KILLED_AFTER)
            killed_in_its_middle(lab, worker)
        (row,) = [row for row in lab.rows() if row.state == "running"]
        assert "checkpoints can't be written" in lab.job().log("w").read_text(encoding="utf-8")
        (small_disk / "others").unlink()
        lab.finish()
        lab.sound(complete=TRIALS)
        assert lab.curves() == expected
        assert 1 < first_epochs(lab)[row.number] <= row.epochs, "it went on from the one that was there"


@contextmanager
def suppress_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        assert error.errno == 28, error  # noqa: PT017 - ENOSPC is what the block is to end by


def test_files_that_may_not_grow_are_a_warning(
    database: Database, folder: Path, in_peace: Callable[[str], Curves]
) -> None:
    """Also where no file system can be mounted: no checkpoint fits the limit, every trial is complete."""
    expected = in_peace(PLAIN)
    with lab_of(database, digits_spec(budget={"trials": TRIALS}), folder, PLAIN) as lab:
        with lab.worker(limits={"file_size": 4096}) as worker:
            _ends_in_peace_without_checkpoints(lab, expected, worker)
        assert not saved(lab)


def broken_model(input_shape: tuple[int, ...], classes: int) -> Any:
    """A model that can't be built, as one of several in a space."""
    raise ValueError("this trial's model is broken")


def test_an_exception_in_one_slot_is_that_trials_alone(database: Database, folder: Path) -> None:
    """Of a pool on the fused engine one trial's model raises and one diverges; the others don't notice."""
    name = f"{__name__}:broken_model"
    spec = digits_spec(
        allow_imports=[__name__],
        space={"learning_rate": {"low": 1e-3, "high": 1e-1, "grid": [0.001, 0.01]}, "model": ["cnn", name]},
        fixed={"epochs": 3, "optimizer": "sgd", "batch_size": 64},
        methods={"grid": {}},
        model="cnn",
    )
    with lab_of(database, spec, folder, "fused") as lab:
        with lab.worker() as worker:
            assert worker.wait(PATIENCE) == 0
        lab.sound(complete=2, failed=2)
        failed = [row for row in lab.rows() if row.state == "failed"]
        assert all("this trial's model is broken" in str(row.reason) for row in failed)
