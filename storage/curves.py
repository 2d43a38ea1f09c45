"""Curves: what every trial said at every epoch's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import text

from storage.database import Database
from storage.errors import AttemptLost
from storage.records import EpochRecord
from storage.values import json_text


class Report(Protocol):
    """What a trial says at an epoch's end; `objectives.base.EpochReport` fits."""

    @property
    def epoch(self) -> int: ...
    @property
    def train_loss(self) -> float | None: ...
    @property
    def validation_loss(self) -> float | None: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def gradient_norm(self) -> float | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def images_per_second(self) -> float: ...
    @property
    def diverged(self) -> bool: ...


# The attempt's row is locked against ending until the point is stored. A newer attempt's point
# replaces an older one's, never the other way round.
WRITE = """
INSERT INTO shoal.epochs AS point
    (trial_id, epoch, attempt, study_id, trial_number, train_loss, validation_loss, metrics,
     gradient_norm, learning_rate, seconds, images_per_second, diverged)
SELECT attempt.trial_id, :epoch, attempt.number, attempt.study_id, attempt.trial_number, :train_loss,
       :validation_loss, CAST(:metrics AS json), :gradient_norm, :learning_rate, :seconds,
       :images_per_second, :diverged
FROM shoal.attempts AS attempt
WHERE attempt.trial_id = :trial_id AND attempt.number = :attempt AND attempt.state = 'running'
FOR SHARE
ON CONFLICT (trial_id, epoch) DO UPDATE
SET attempt = excluded.attempt, train_loss = excluded.train_loss,
    validation_loss = excluded.validation_loss, metrics = excluded.metrics,
    gradient_norm = excluded.gradient_norm, learning_rate = excluded.learning_rate,
    seconds = excluded.seconds, images_per_second = excluded.images_per_second,
    diverged = excluded.diverged
WHERE point.attempt <= excluded.attempt
"""

READ = """
SELECT study.name AS study_name, point.trial_number, point.trial_id, point.attempt, point.epoch,
       point.train_loss, point.validation_loss, point.metrics, point.gradient_norm,
       point.learning_rate, point.seconds, point.images_per_second, point.diverged
FROM shoal.epochs AS point
JOIN shoal.experiment_studies AS study ON study.id = point.study_id
WHERE {condition}
ORDER BY study.id, point.trial_number, point.epoch
"""


class Curves:
    """Reads and writes curves. May be shared by threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def write(self, trial_id: int, attempt: int, report: Report) -> None:
        """Store one epoch's report; an epoch that is run again replaces the point before.

        Raises `AttemptLost` if the attempt does not run any more (nothing is stored then), and
        `ValueRefused` for numbers that are not finite.
        """
        values = {
            "trial_id": trial_id,
            "attempt": attempt,
            "epoch": int(report.epoch),
            "train_loss": _number(report.train_loss),
            "validation_loss": _number(report.validation_loss),
            "metrics": json_text({name: float(value) for name, value in report.metrics.items()}),
            "gradient_norm": _number(report.gradient_norm),
            "learning_rate": float(report.learning_rate),
            "seconds": float(report.seconds),
            "images_per_second": float(report.images_per_second),
            "diverged": bool(report.diverged),
        }
        with self.database.begin() as connection:
            stored = connection.execute(text(WRITE), values).rowcount
        if not stored:
            raise AttemptLost(f"attempt {attempt} of trial {trial_id} does not run any more")

    def of_trial(self, trial_id: int) -> list[EpochRecord]:
        """A trial's curve, by epoch."""
        return self._read("point.trial_id = :value", trial_id)

    def of_study(self, study_name: str) -> list[EpochRecord]:
        """All curves of a study, by trial and epoch."""
        return self._read("study.name = :value", study_name)

    def of_experiment(self, experiment_id: int) -> list[EpochRecord]:
        """All curves of an experiment, by study, trial and epoch."""
        return self._read("study.experiment_id = :value", experiment_id)

    def _read(self, condition: str, value: Any) -> list[EpochRecord]:
        with self.database.begin() as connection:
            rows = connection.execute(text(READ.format(condition=condition)), {"value": value}).mappings()
            return [EpochRecord(**row) for row in rows]


def _number(value: float | None) -> float | None:
    """A plain float: NumPy's would be written as `np.float64(…)` into the statement."""
    return None if value is None else float(value)
