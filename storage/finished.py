"""Trials that have ended, with everything that is known of each: for what writes them elsewhere.

A few statements for any number of trials; as `storage.queries` this reads Optuna's tables as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.curves import READ
from storage.database import Database
from storage.queries import BY_NUMBER, OF_OUR_STUDIES, ROWS, rows_of
from storage.records import EpochRecord, StudyRole, TrialRow
from storage.sqlstates import optuna_tables_missing

ENDED = """
SELECT trial.trial_id
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN trials AS trial ON trial.study_id = optuna.study_id
WHERE study.experiment_id = :experiment_id AND trial.state IN ('COMPLETE', 'PRUNED', 'FAIL')
"""

CHOSEN = f"""
WITH chosen AS MATERIALIZED ({OF_OUR_STUDIES} WHERE trial.trial_id = ANY(:trial_ids))
{ROWS}
{BY_NUMBER}
"""

# A trial's role is its study's; its seed is a user attribute, as JSON; of readings of the test set only
# those that the trial itself made.
MORE = """
SELECT trial.trial_id, study.role, noted.value_json AS seed, reading.metrics AS test
FROM trials AS trial
JOIN studies AS optuna ON optuna.study_id = trial.study_id
JOIN shoal.experiment_studies AS study ON study.name = optuna.study_name
LEFT JOIN trial_user_attributes AS noted ON noted.trial_id = trial.trial_id AND noted.key = :seed_key
LEFT JOIN shoal.test_readings AS reading ON reading.retraining_trial_id = trial.trial_id
WHERE trial.trial_id = ANY(:trial_ids)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTrial:
    """A trial in its terminal state: it never changes any more."""

    row: TrialRow
    role: StudyRole
    seed: int | None
    """None for a trial that another Optuna client ran."""
    curve: tuple[EpochRecord, ...]
    test: Mapping[str, float]
    """Its reading of the sealed test set, if it retrained a winner; else empty."""


class Finished:
    """Reads trials of one experiment that have ended. One thread. Raises `DatabaseUnreachable`."""

    def __init__(self, database: Database, experiment_id: int, *, seed_key: str) -> None:
        """`seed_key`: the user attribute that holds a trial's seed."""
        self._database = database
        self._experiment_id = experiment_id
        self._seed_key = seed_key

    def ids(self) -> frozenset[int]:
        """Of all that have ended, in searches and retrainings."""
        try:
            with self._database.begin() as connection:
                values = {"experiment_id": self._experiment_id}
                return frozenset(connection.scalars(text(ENDED), values))
        except DBAPIError as error:
            if optuna_tables_missing(error):
                return frozenset()
            raise

    def trials(self, trial_ids: Collection[int]) -> list[FinishedTrial]:
        """Those of these ids that are still there, by study and number."""
        values = {"trial_ids": list(trial_ids)}
        rows = rows_of(self._database, CHOSEN, values)
        with self._database.begin() as connection:
            statement = text(READ.format(condition="point.trial_id = ANY(:trial_ids)"))
            points = [EpochRecord(**row) for row in connection.execute(statement, values).mappings()]
            more = connection.execute(text(MORE), values | {"seed_key": self._seed_key}).all()
        curves: dict[int, list[EpochRecord]] = {}
        for point in points:
            curves.setdefault(point.trial_id, []).append(point)
        known = {row.trial_id: row for row in more}
        return [
            FinishedTrial(
                row=row,
                role=known[row.trial_id].role,
                seed=None if known[row.trial_id].seed is None else int(known[row.trial_id].seed),
                curve=tuple(curves.get(row.trial_id, ())),
                test=known[row.trial_id].test or {},
            )
            for row in rows
            if row.trial_id in known
        ]
