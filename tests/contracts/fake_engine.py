"""Engines for tests of what lies around an engine: deterministic curves without any training.

What a trial does is read from its config: see `FakeEngine`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from objectives.base import (
    EpochEnd,
    EpochReport,
    SlotError,
    Task,
    TestScore,
    TrialFailure,
    TrialStart,
    derive_seed,
)
from tests.contracts.hold import heed

LOG_VARIABLE = "FAKE_ENGINE_LOG"
"""Environment variable: a file to which every trained epoch is appended, one line each."""
SCORED_VARIABLE = "FAKE_ENGINE_SCORED"
"""Environment variable: a file that gets a line whenever the test set is read."""
BEGUN_VARIABLE = "FAKE_ENGINE_BEGUN"
"""Environment variable: a file that is there once an epoch has begun."""
SECONDS_VARIABLE = "FAKE_ENGINE_SECONDS"
"""Environment variable: seconds that an epoch takes."""
# And `tests.contracts.hold.VARIABLE`, which makes an engine wait that has trained so many epochs.


def value_at(start: TrialStart, epoch: int) -> float:
    """A curve that rises towards a height that depends on config and seed, in (0, 1)."""
    noise = derive_seed(start.seed, epoch) / 2**63
    height = 1.0 / (1.0 + abs(start.config.learning_rate - 0.1) + 0.01 * start.config.strength)
    return height * (1 - 0.5**epoch) * (0.95 + 0.05 * noise)


class FakeEngine:
    """Implements `objectives.base.Engine` with `slots` slots.

    By its loss a trial trains (`cross_entropy`), or diverges at epoch 2 (`diverges`), raises at
    epoch 2 (`raises`), runs out of memory at epoch 2 (`memory`), kills its process (`kills`), or
    never comes back from epoch 2 (`hangs`).
    """

    slots = 1

    def __init__(self, task: Task, device: str = "auto") -> None:
        self._task = task
        self._device = device
        self._held: dict[int, tuple[TrialStart, int]] = {}
        self._trained = 0

    @property
    def free_slots(self) -> int:
        return self.slots - len(self._held)

    def admit(self, start: TrialStart) -> None:
        if self.free_slots == 0 or start.trial_id in self._held:
            raise SlotError(f"no slot for trial {start.trial_id}")
        epoch = 0
        if start.checkpoint is not None:
            state = json.loads(start.checkpoint.read_text(encoding="utf-8"))
            assert state["seed"] == start.seed
            epoch = state["epoch"]
        self._held[start.trial_id] = (start, epoch)

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        if begun := os.environ.get(BEGUN_VARIABLE):
            Path(begun).touch()
        heed(self._trained)
        time.sleep(float(os.environ.get(SECONDS_VARIABLE, "0")))
        return [self._train(trial_id) for trial_id in list(self._held)]

    def _train(self, trial_id: int) -> EpochEnd | TrialFailure:
        start, epoch = self._held[trial_id]
        epoch += 1
        self._trained += 1
        loss = start.config.loss.name
        if epoch == 2 and loss == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 2 and loss == "hangs":
            time.sleep(3600)
        if epoch == 2 and loss in ("raises", "memory"):
            del self._held[trial_id]
            return TrialFailure(trial_id, f"it {loss}", "Traceback: here\n", retryable=loss == "memory")
        diverged = epoch == 2 and loss == "diverges"
        self._held[trial_id] = (start, epoch)
        if log := os.environ.get(LOG_VARIABLE):
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{trial_id} {epoch}\n")
        report, last = self._report(start, epoch, diverged), epoch >= start.config.epochs
        scored = start.score_test and (last or diverged)
        return EpochEnd(trial_id, report, last, self._score(report) if scored else None)

    def _score(self, report: EpochReport) -> TestScore:
        """A little worse than on the validation images."""
        if log := os.environ.get(SCORED_VARIABLE):
            with Path(log).open("a", encoding="utf-8") as file:
                file.write("scored\n")
        metrics = {name: value - 0.01 for name, value in report.metrics.items()}
        return TestScore(metrics, report.epoch, 360, 0.001, report.metrics)

    def _report(self, start: TrialStart, epoch: int, diverged: bool) -> EpochReport:
        value = 0.0 if diverged else value_at(start, epoch)
        return EpochReport(
            epoch=epoch,
            train_loss=None if diverged else 1 - value,
            validation_loss=None if diverged else 1 - value,
            metrics={self._task.metric: value},
            gradient_norm=1.0,
            learning_rate=start.config.learning_rate,
            seconds=0.001,
            images_per_second=1000.0,
            diverged=diverged,
        )

    def retire(self, trial_id: int) -> None:
        if trial_id not in self._held:
            raise SlotError(f"trial {trial_id} is not held")
        del self._held[trial_id]

    def save(self, trial_id: int, path: Path) -> None:
        start, epoch = self._held[trial_id]
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps({"seed": start.seed, "epoch": epoch}), encoding="utf-8")
        aside.replace(path)


class FourSlotEngine(FakeEngine):
    """Four trials at a time."""

    slots = 4


FAKE = "tests.contracts.fake_engine:FakeEngine"
FOUR_SLOTS = "tests.contracts.fake_engine:FourSlotEngine"
