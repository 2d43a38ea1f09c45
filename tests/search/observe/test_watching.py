"""A worker watched from outside: what it does to trials is counted, clocked and logged once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from objectives.base import EpochReport
from search.observe.live import Instruments, instruments
from search.observe.watching import Watched, WatchedLedger, WatchedSaver, watching
from storage.errors import DatabaseUnreachable
from storage.ledger import Ending, EpochWrite, Expired, Lease, Ledger, Written

LEASE = Lease(
    study_name="e/tpe/0",
    trial_id=70,
    number=7,
    attempt=1,
    token=700,
    deadline=datetime(2026, 1, 1, tzinfo=UTC),
    params={},
    fixed={},
    attributes={},
    last_step=None,
)
OTHER = replace(LEASE, number=8, trial_id=80, token=800, attempt=2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeLedger:
    """Answers as it is told."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.takes = 0.25
        self.error: Exception | None = None
        self.written = Written()
        self.leases = [LEASE, OTHER]

    def _answer(self) -> None:
        self.clock.now += self.takes
        if self.error is not None:
            raise self.error

    def claim(self, *_: Any, **__: Any) -> list[Lease]:
        self._answer()
        return self.leases

    def write(self, **_: Any) -> Written:
        self._answer()
        return self.written

    def expire(self, *_: Any, **__: Any) -> list[Expired]:
        self._answer()
        lost = {"study_name": "e/tpe/0", "trial_id": 70, "number": 7, "attempt": 1, "worker": "dead"}
        return [Expired(**lost, given_up=False)]  # type: ignore[arg-type]


@dataclass
class Watch:
    fake: FakeLedger
    ledger: WatchedLedger
    metrics: Instruments
    clock: Clock

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def watch() -> Watch:
    clock = Clock()
    fake = FakeLedger(clock)
    metrics = Instruments()
    return Watch(fake, WatchedLedger(cast("Ledger", fake), metrics, clock), metrics, clock)


def report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        validation_loss=1.0,
        metrics={},
        gradient_norm=None,
        learning_rate=0.1,
        seconds=2.0,
        images_per_second=10.0,
    )


def epochs(*leases: Lease, epoch: int = 1) -> list[EpochWrite]:
    return [EpochWrite(lease=lease, report=report(epoch), value=0.5) for lease in leases]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_a_life_is_logged_line_by_line(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        watch.ledger.claim("e/tpe/0", 1, waiting=0, new=2)
        watch.ledger.write(epochs=epochs(LEASE, OTHER, epoch=3))
        watch.ledger.write(endings=[Ending(lease=LEASE, state="complete", value=0.9375)])
        watch.ledger.write(endings=[Ending(lease=OTHER, state="pruned")])
    assert said(caplog) == [
        (logging.INFO, "claimed trial 7 of e/tpe/0"),
        (logging.INFO, "claimed trial 8 of e/tpe/0, attempt 2"),
        (logging.INFO, "trial 7 of e/tpe/0 complete after epoch 3 with 0.9375"),
        (logging.INFO, "trial 8 of e/tpe/0 pruned after epoch 3"),
    ]
    assert caplog.records[2].ids == {  # type: ignore[attr-defined]
        "study": "e/tpe/0",
        "trial": 7,
        "trial_id": 70,
        "attempt": 1,
        "state": "complete",
        "epoch": 3,
        "value": 0.9375,
    }


@pytest.mark.parametrize(
    ("ending", "given_up", "level", "line"),
    [
        (
            Ending(lease=LEASE, state="failed", reason="ValueError: no"),
            False,
            logging.WARNING,
            "trial 7 of e/tpe/0 failed after epoch 0: ValueError: no",
        ),
        (
            Ending(lease=LEASE, state="retry", reason="out of memory"),
            False,
            logging.WARNING,
            "trial 7 of e/tpe/0 failed after epoch 0, tried again: out of memory",
        ),
        (
            Ending(lease=LEASE, state="retry", reason="out of memory"),
            True,
            logging.WARNING,
            "trial 7 of e/tpe/0 failed after epoch 0, for good: out of memory",
        ),
        (
            Ending(lease=LEASE, state="released"),
            False,
            logging.INFO,
            "trial 7 of e/tpe/0 given back after epoch 0",
        ),
    ],
)
def test_how_trials_are_parted_with(
    watch: Watch, caplog: pytest.LogCaptureFixture, ending: Ending, given_up: bool, level: int, line: str
) -> None:
    watch.fake.written = Written(given_up=frozenset({LEASE.token} if given_up else ()))
    with caplog.at_level(logging.INFO):
        watch.ledger.write(endings=[ending])
    assert said(caplog) == [(level, line)]
    assert watch.value("shoal_worker_endings_total", outcome=ending.state) == 1


def test_what_is_refused_counts_as_lost_and_as_nothing_else(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.ledger.claim("e/tpe/0", 1, waiting=0, new=2)
    watch.fake.written = Written(refused={LEASE.token: "the lease ran out"})
    with caplog.at_level(logging.INFO):
        watch.ledger.write(
            beats=[LEASE, OTHER],
            epochs=epochs(LEASE, OTHER),
            endings=[Ending(lease=LEASE, state="complete", value=0.5)],
        )
    assert said(caplog) == [], "whoever holds the lease says that it was lost"
    assert watch.value("shoal_worker_endings_total", outcome="lost") == 1
    assert watch.value("shoal_worker_endings_total", outcome="complete") == 0
    assert watch.value("shoal_worker_beats_total") == 1
    assert watch.value("shoal_worker_epoch_seconds_count") == 1
    assert watch.value("shoal_worker_trials_held") == 1


def test_calls_are_clocked_and_failures_counted(watch: Watch) -> None:
    watch.ledger.claim("e/tpe/0", 1, waiting=0, new=2)
    watch.fake.error = DatabaseUnreachable("away", retryable=True)
    watch.fake.takes = 7.0
    with pytest.raises(DatabaseUnreachable):
        watch.ledger.write(beats=[LEASE])
    assert watch.value("shoal_database_call_seconds_sum", call="claim") == 0.25
    assert watch.value("shoal_database_call_seconds_sum", call="write") == 7.0
    assert watch.value("shoal_database_failures_total", call="write") == 1
    assert watch.value("shoal_database_failures_total", call="claim") == 0


def test_the_age_of_the_last_write_grows_while_nothing_is_written(watch: Watch) -> None:
    watch.ledger.write(beats=[LEASE])
    watch.clock.now += 30
    watch.fake.error = DatabaseUnreachable("away", retryable=True)
    with pytest.raises(DatabaseUnreachable):
        watch.ledger.write(beats=[LEASE])
    assert watch.value("shoal_worker_last_write_seconds") == 30.25


def test_trials_that_were_given_up_while_the_database_was_away_are_not_held(watch: Watch) -> None:
    """A beat names all that a worker holds."""
    watch.ledger.claim("e/tpe/0", 1, waiting=0, new=2)
    assert watch.value("shoal_worker_trials_held") == 2
    watch.ledger.write(beats=[OTHER])
    assert watch.value("shoal_worker_trials_held") == 1


def test_leases_taken_back_are_logged(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    watch.ledger.expire(1)
    assert said(caplog) == [
        (logging.WARNING, "trial 7 of e/tpe/0 is queued again: the lease of dead ran out")
    ]


class Engine:
    """What an engine may know of itself."""

    slots = 16
    free_slots = 6
    occupancy = 0.75
    programs_built = 2
    images_trained = 1200

    def device_memory(self) -> dict[str, int]:
        return {"allocated": 5, "total": 9}


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Any]:
    engine = Engine()
    info = {"device": "H100", "trainer": "fused"}
    with watching("w1", "e", info, cast("Any", engine), tmp_path / "not" / "made" / "yet"):
        yield SimpleNamespace(value=instruments().registry.get_sample_value, engine=engine)
    assert instruments().registry.get_sample_value("shoal_worker_slots") is None


def test_an_engine_is_asked_at_each_scrape(told: Any) -> None:
    assert told.value("shoal_worker_slots") == 16
    assert told.value("shoal_worker_slots_taken") == 10
    told.engine.free_slots = 0
    assert told.value("shoal_worker_slots_taken") == 16
    assert told.value("shoal_worker_row_occupancy") == 0.75
    assert told.value("shoal_worker_programs") == 2
    assert told.value("shoal_worker_images_total") == 1200
    assert told.value("shoal_worker_device_memory_bytes", {"kind": "allocated"}) == 5
    labels = {"worker": "w1", "experiment": "e", "device": "H100", "trainer": "fused"}
    assert told.value("shoal_worker_info", labels) == 1
    assert told.value("shoal_worker_checkpoint_disk_free_bytes") > 0


def test_an_engine_that_knows_little_tells_its_slots(tmp_path: Path) -> None:
    engine = SimpleNamespace(free_slots=1)
    metrics = Instruments()
    watched = Watched(("w", "e", "", ""), cast("Any", engine), tmp_path, metrics)
    metrics.registry.register(watched)
    engine.free_slots = 0
    assert metrics.registry.get_sample_value("shoal_worker_slots_taken") == 1
    assert metrics.registry.get_sample_value("shoal_worker_images_total") is None


def test_an_engine_in_the_middle_of_a_change_spoils_no_scrape(tmp_path: Path) -> None:
    class Changing(Engine):
        @property
        def occupancy(self) -> float:  # type: ignore[override]
            raise RuntimeError("dictionary changed size during iteration")

    metrics = Instruments()
    metrics.registry.register(Watched(("w", "e", "", ""), cast("Any", Changing()), tmp_path, metrics))
    assert metrics.registry.get_sample_value("shoal_worker_slots") == 16
    assert metrics.registry.get_sample_value("shoal_worker_checkpoint_disk_free_bytes") is not None


def test_checkpoints_are_counted_and_clocked(tmp_path: Path) -> None:
    metrics = Instruments()
    saver = WatchedSaver(0.0, metrics)
    saved: list[int] = []
    folder = SimpleNamespace(path=tmp_path, save=lambda *_, **__: saved.append(1))
    claim = SimpleNamespace(lease=LEASE, folder=folder, fingerprint="f")
    assert saver.save(cast("Any", claim), 1, lambda _path: None)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder.save = full
    assert not saver.save(cast("Any", claim), 2, lambda _path: None)
    assert saved == [1]
    value = metrics.registry.get_sample_value
    assert value("shoal_worker_checkpoints_total", {"outcome": "saved"}) == 1
    assert value("shoal_worker_checkpoints_total", {"outcome": "failed"}) == 1
    assert value("shoal_worker_checkpoint_seconds_count") == 2


def test_counters_are_there_before_anything_happens(watch: Watch) -> None:
    """How much one has grown can't be told if it begins with 1: an alert would miss the first."""
    WatchedSaver(0.0, watch.metrics)
    for outcome in ("complete", "pruned", "failed", "released", "retry", "lost"):
        assert watch.value("shoal_worker_endings_total", outcome=outcome) == 0
    assert watch.value("shoal_worker_checkpoints_total", outcome="failed") == 0
    assert watch.value("shoal_database_failures_total", call="write") == 0
    assert watch.value("shoal_worker_endings_created", outcome="lost") is None
