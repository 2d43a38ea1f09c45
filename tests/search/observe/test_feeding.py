"""Feeding sinks: each trial once, a failing sink hurts nobody, and what was missed comes later."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from search.observe import feeding as module
from search.observe.feeding import FIRST_PAUSE, LONGEST_PAUSE, TRIALS_AT_ONCE, Feeder, feeding, origin_of
from search.observe.live import Instruments
from search.observe.sink_tensorboard import TensorboardSink
from search.observe.sinks import SinkError, Target
from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.finished import Finished, FinishedTrial
from tests.contracts.sink_contract import ORIGIN, finished
from tests.contracts.stored_experiment import store_experiment

GOOD, BAD = Target("tensorboard", "good"), Target("mlflow", "http://bad")


@dataclass
class FakeFinished:
    ended: set[int] = field(default_factory=set)
    away: bool = False
    asked: list[int] = field(default_factory=list)

    def ids(self) -> frozenset[int]:
        if self.away:
            raise DatabaseUnreachable("away", retryable=True)
        return frozenset(self.ended)

    def trials(self, trial_ids: Any) -> list[FinishedTrial]:
        self.asked.append(len(trial_ids))
        return [finished(trial_id, trial_id) for trial_id in trial_ids]


@dataclass
class FakeSink:
    """Holds trials; raises `error` while there is one, after it has stored `lost` more."""

    held: list[int] = field(default_factory=list)
    error: Exception | None = None
    lost: int = 0
    opened: int = 0

    def open(self) -> FakeSink:
        self.opened += 1
        if self.error is not None and not self.lost:
            raise self.error
        return self

    def known(self) -> set[int]:
        return set(self.held)

    def write(self, trial: FinishedTrial) -> None:
        if self.error is not None:
            if self.lost:
                self.lost -= 1
                self.held.append(trial.row.trial_id)
            raise self.error
        self.held.append(trial.row.trial_id)


@dataclass
class Kitchen:
    trials: FakeFinished
    good: FakeSink
    bad: FakeSink
    metrics: Instruments
    now: float = 0.0

    def feeder(self) -> Feeder:
        sinks = {GOOD: self.good, BAD: self.bad}
        return Feeder(
            [BAD, GOOD],
            ORIGIN,
            cast("Finished", self.trials),
            metrics=self.metrics,
            clock=lambda: self.now,
            opener=lambda target, _origin: cast("Any", sinks[target].open()),
        )


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen(FakeFinished({1, 2, 3}), FakeSink(), FakeSink(), Instruments())


def test_each_trial_once(kitchen: Kitchen) -> None:
    feeder = kitchen.feeder()
    feeder.step()
    kitchen.trials.ended |= {4}
    feeder.step()
    feeder.step()
    assert kitchen.good.held == kitchen.bad.held == [1, 2, 3, 4]
    assert kitchen.metrics.registry.get_sample_value("shoal_sink_trials_total", {"sink": "mlflow"}) == 4


def test_what_a_sink_holds_from_before_is_not_written_again(kitchen: Kitchen) -> None:
    kitchen.good.held = [1, 3]
    kitchen.feeder().step()
    assert kitchen.good.held == [1, 3, 2]


def test_a_failing_sink_hurts_neither_the_run_nor_another_sink(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen.bad.error = ZeroDivisionError("a mistake in its library")
    feeder = kitchen.feeder()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            feeder.step()
            kitchen.now += LONGEST_PAUSE
    assert kitchen.good.held == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "mlflow:http://bad can't be written, its trials are written later: a mistake in its library"
    ]
    assert feeder.missing() == {"mlflow:http://bad": (3, "a mistake in its library")}


def test_it_is_tried_again_ever_more_rarely(kitchen: Kitchen) -> None:
    kitchen.bad.error = SinkError("away")
    feeder = kitchen.feeder()
    tries = []
    for second in range(int(LONGEST_PAUSE * 4)):
        kitchen.now = float(second)
        before = kitchen.bad.opened
        feeder.step()
        if kitchen.bad.opened > before:
            tries.append(second)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses == [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(len(pauses))]
    assert pauses[-1] == LONGEST_PAUSE


def test_once_it_is_back_it_gets_what_it_lacks(kitchen: Kitchen, caplog: pytest.LogCaptureFixture) -> None:
    kitchen.bad.error = SinkError("away")
    feeder = kitchen.feeder()
    feeder.step()
    kitchen.bad.error = None
    feeder.step()
    assert kitchen.bad.held == [], "its time has not come"
    kitchen.now += FIRST_PAUSE
    with caplog.at_level(logging.WARNING):
        feeder.step()
    assert kitchen.bad.held == [1, 2, 3]
    assert "mlflow:http://bad can be written again" in caplog.text
    assert feeder.missing() == {}


def test_a_trial_that_was_written_though_the_answer_was_lost_is_not_written_twice(kitchen: Kitchen) -> None:
    kitchen.bad.error, kitchen.bad.lost = SinkError("no answer"), 1
    feeder = kitchen.feeder()
    feeder.step()
    kitchen.bad.error = None
    kitchen.now += FIRST_PAUSE
    feeder.step()
    assert kitchen.bad.held == [1, 2, 3]


def test_the_last_try_does_not_wait_for_its_time(kitchen: Kitchen) -> None:
    kitchen.bad.error = SinkError("away")
    feeder = kitchen.feeder()
    feeder.step()
    kitchen.bad.error = None
    feeder.step(last=True)
    assert kitchen.bad.held == [1, 2, 3]


def test_a_database_that_is_away_is_no_sinks_failure(kitchen: Kitchen) -> None:
    kitchen.trials.away = True
    feeder = kitchen.feeder()
    with pytest.raises(DatabaseUnreachable):
        feeder.step()
    kitchen.trials.away = False
    feeder.step()
    assert kitchen.good.held == [1, 2, 3]


def test_many_trials_are_read_some_at_a_time(kitchen: Kitchen) -> None:
    kitchen.trials.ended = set(range(2 * TRIALS_AT_ONCE + 1))
    feeder = kitchen.feeder()
    feeder.step()
    assert kitchen.trials.asked == [TRIALS_AT_ONCE, TRIALS_AT_ONCE, 1] * 2
    assert sorted(kitchen.good.held) == sorted(kitchen.trials.ended)


def test_a_run_feeds_a_real_sink_from_the_database(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment is made during the run; whatever the time, all is there at its end."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    target, told = Target("tensorboard", str(tmp_path / "tb")), []
    with feeding([target], database.url, "stored", told.append):
        record = store_experiment(database)
    ended = Finished(database, record.id, seed_key="shoal:seed").ids()
    assert TensorboardSink(target.place, origin_of(record)).known() == ended
    files = sorted((tmp_path / "tb").rglob("*tfevents*"))
    assert len(files) == 16
    with feeding([target], database.url, "stored", told.append):
        pass
    assert sorted((tmp_path / "tb").rglob("*tfevents*")) == files
    assert told == []


def test_what_is_lacking_at_the_end_is_told_without_secrets(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    store_experiment(database)
    (tmp_path / "tb").write_text("a file where a folder should be")
    told: list[str] = []
    with feeding([Target("tensorboard", str(tmp_path / "tb"))], database.url, "stored", told.append):
        pass
    assert len(told) == 1
    assert "lacks 16 trials, which the next run writes" in told[0]


def test_without_sinks_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "threading", None)
    with feeding([], "postgresql://nowhere/x", "e", print):
        pass
