"""What every sink promises; inherited by the tests of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from search.observe.sinks import Origin, Sink
from storage.finished import FinishedTrial
from storage.records import EpochRecord, TrialRow

ORIGIN = Origin(experiment="digits <b>", birth="0123456789ab", metric="accuracy")
STARTED = datetime(2026, 1, 1, 12, tzinfo=UTC)


def finished(number: int = 3, trial_id: int = 41, **changes: object) -> FinishedTrial:
    """A complete trial of two epochs; `changes` are to its row."""
    row = TrialRow(
        study_name="digits <b>/tpe/0",
        method="tpe",
        replicate=0,
        number=number,
        trial_id=trial_id,
        state="complete",
        value=0.875,
        params={"learning_rate": 0.01, "loss": "mse", "batch_size": 32, "augment.flip": True},
        epochs=2,
        seconds=3.0,
        sampler_seconds=0.5,
        attempts=2,
        reason=None,
        diverged=False,
        started_at=STARTED,
        ended_at=STARTED + timedelta(minutes=1),
    )
    curve = tuple(
        EpochRecord(
            study_name=row.study_name,
            trial_number=number,
            trial_id=trial_id,
            attempt=1,
            epoch=epoch,
            train_loss=1.0 / epoch,
            validation_loss=None,
            metrics={"accuracy": 0.5 + 0.1875 * epoch},
            gradient_norm=None,
            learning_rate=0.01,
            seconds=1.5,
            images_per_second=100.0,
            diverged=False,
        )
        for epoch in (1, 2)
    )
    found = FinishedTrial(row=row, role="search", seed=2**62 + 1, curve=curve, test={})
    return replace(found, row=replace(row, **changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Held:
    """A trial as a sink gives it back; numbers by name and epoch."""

    tags: Mapping[str, str]
    params: Mapping[str, str]
    curves: Mapping[str, Mapping[int, float]]
    finals: Mapping[str, float]
    failed: bool = False
    name: str = field(default="", compare=False)


class SinkContract(ABC):
    """Inherit, and say how a sink is opened, read back and broken off in the middle of a write."""

    @abstractmethod
    def open(self, place: Path, origin: Origin = ORIGIN) -> Sink:
        """A sink at that place, which is an empty folder at first."""

    @abstractmethod
    def held(self, place: Path, origin: Origin = ORIGIN) -> list[Held]:
        """What lies there of an experiment, as its own library reads it."""

    @abstractmethod
    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the next write end in the middle, as if the process had died."""

    def test_a_trial_comes_back_as_it_was(self, tmp_path: Path) -> None:
        self.open(tmp_path).write(finished())
        (held,) = self.held(tmp_path)
        assert held.tags == {
            "experiment": "digits <b>",
            "study": "digits <b>/tpe/0",
            "method": "tpe",
            "replicate": "0",
            "role": "search",
            "trial": "3",
            "trial_id": "41",
            "attempts": "2",
            "seed": str(2**62 + 1),
            "state": "complete",
            "diverged": "False",
            "metric": "accuracy",
        }
        assert held.params == {
            "learning_rate": "0.01",
            "loss": "mse",
            "batch_size": "32",
            "augment.flip": "True",
        }
        assert held.curves == {
            "train_loss": {1: 1.0, 2: 0.5},
            "learning_rate": {1: pytest.approx(0.01), 2: pytest.approx(0.01)},
            "epoch_seconds": {1: 1.5, 2: 1.5},
            "accuracy": {1: 0.6875, 2: 0.875},
        }
        assert held.finals == {"value": 0.875, "epochs": 2.0, "device_seconds": 3.0, "sampler_seconds": 0.5}
        assert not held.failed

    def test_it_knows_what_it_holds_also_after_it_was_opened_again(self, tmp_path: Path) -> None:
        sink = self.open(tmp_path)
        assert sink.known() == set()
        for trial_id in (41, 42):
            sink.write(finished(trial_id, trial_id))
        assert sink.known() == {41, 42}
        assert self.open(tmp_path).known() == {41, 42}

    def test_experiments_of_one_name_in_two_databases_are_told_apart(self, tmp_path: Path) -> None:
        self.open(tmp_path).write(finished())
        other = replace(ORIGIN, birth="ba9876543210")
        sink = self.open(tmp_path, other)
        assert sink.known() == set()
        sink.write(finished())
        assert (sink.known(), self.open(tmp_path).known()) == ({41}, {41})

    def test_a_write_that_was_broken_off_is_not_known_and_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.interrupt(patch)
            with pytest.raises(KeyboardInterrupt):
                self.open(tmp_path).write(finished())
        sink = self.open(tmp_path)
        assert sink.known() == set()
        sink.write(finished())
        assert sink.known() == {41}
        assert len(self.held(tmp_path)) == 1

    def test_pruned_failed_and_diverged_trials(self, tmp_path: Path) -> None:
        sink = self.open(tmp_path)
        sink.write(finished(1, 1, state="pruned", value=0.5, epochs=1))
        sink.write(finished(2, 2, state="failed", value=None, reason="ValueError: <no>"))
        sink.write(finished(3, 3, diverged=True, value=float("-inf")))
        pruned, failed, diverged = sorted(self.held(tmp_path), key=lambda held: held.tags["trial_id"])
        assert (pruned.tags["state"], pruned.finals["value"], pruned.failed) == ("pruned", 0.5, False)
        assert (failed.tags["state"], failed.tags["reason"]) == ("failed", "ValueError: <no>")
        assert failed.failed
        assert "value" not in failed.finals
        assert diverged.tags["diverged"] == "True"
        assert "value" not in diverged.finals, "a value that isn't finite is never written as one"

    def test_a_trial_of_another_client_has_neither_curve_nor_seed(self, tmp_path: Path) -> None:
        bare = finished(started_at=None, attempts=0, epochs=0)
        self.open(tmp_path).write(replace(bare, seed=None, curve=()))
        (held,) = self.held(tmp_path)
        assert "seed" not in held.tags
        assert held.curves == {}

    def test_a_retrained_winner_has_its_reading_of_the_test_set(self, tmp_path: Path) -> None:
        winner = replace(finished(), role="retraining", test={"accuracy": 0.75})
        self.open(tmp_path).write(winner)
        self.open(tmp_path).write(finished(3, 99))
        held = {one.tags["trial_id"]: one for one in self.held(tmp_path)}
        assert held["41"].finals["test_accuracy"] == 0.75
        assert held["41"].tags["role"] == "retraining"
        assert "test_accuracy" not in held["99"].finals

    def test_names_lead_nowhere_else(self, tmp_path: Path) -> None:
        """Methods and experiments are named by files that come from others."""
        place = tmp_path / "inside"
        place.mkdir()
        origin = replace(ORIGIN, experiment="../../outside")
        self.open(place, origin).write(finished(method="../../.."))
        assert [path.name for path in tmp_path.iterdir()] == ["inside"]
        assert len(self.held(place, origin)) == 1
