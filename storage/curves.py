"""Curves: what every trial said at every epoch's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import text

from storage.database import Database
from storage.records import CurveArrays, EpochRecord


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


READ = """
SELECT study.name AS study_name, point.trial_number, point.trial_id, point.attempt, point.epoch,
       point.train_loss, point.validation_loss, point.metrics, point.gradient_norm,
       point.learning_rate, point.seconds, point.images_per_second, point.diverged
FROM shoal.epochs AS point
JOIN shoal.experiment_studies AS study ON study.id = point.study_id
WHERE {condition}
ORDER BY study.id, point.trial_number, point.epoch
"""

POINTS = """
SELECT point.trial_id, array_agg(point.epoch ORDER BY point.epoch),
       array_agg(CAST(point.metrics ->> :metric AS float8) ORDER BY point.epoch),
       array_agg(point.train_loss ORDER BY point.epoch),
       array_agg(point.validation_loss ORDER BY point.epoch),
       array_agg(point.seconds ORDER BY point.epoch), max(point.written_at)
FROM shoal.epochs AS point
JOIN shoal.experiment_studies AS study ON study.id = point.study_id
WHERE study.experiment_id = :experiment_id AND study.role = 'search'
GROUP BY point.trial_id
"""


class Curves:
    """Reads curves; the ledger writes them. May be shared by threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def of_trial(self, trial_id: int) -> list[EpochRecord]:
        """A trial's curve, by epoch."""
        return self._read("point.trial_id = :value", trial_id)

    def of_study(self, study_name: str) -> list[EpochRecord]:
        """All curves of a study, by trial and epoch."""
        return self._read("study.name = :value", study_name)

    def of_experiment(self, experiment_id: int) -> list[EpochRecord]:
        """All curves of an experiment's search, by study, trial and epoch."""
        return self._read("study.experiment_id = :value AND study.role = 'search'", experiment_id)

    def points(self, experiment_id: int, metric: str) -> dict[int, CurveArrays]:
        """What a report needs of all curves of an experiment's search, by the trial's id.

        A row per trial: at 200,000 epochs a tenth of what `of_experiment` takes.
        """
        values = {"experiment_id": experiment_id, "metric": metric}
        with self.database.begin() as connection:
            return {row[0]: CurveArrays(*row[1:]) for row in connection.execute(text(POINTS), values)}

    def _read(self, condition: str, value: Any) -> list[EpochRecord]:
        with self.database.begin() as connection:
            rows = connection.execute(text(READ.format(condition=condition)), {"value": value}).mappings()
            return [EpochRecord(**row) for row in rows]
