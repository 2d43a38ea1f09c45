"""Which trials of an experiment have not ended, by where they are counted."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.database import Database
from storage.records import StudyRole
from storage.sqlstates import optuna_tables_missing

OPEN = """
SELECT study.role, study.method, study.replicate, trial.number
FROM shoal.experiment_studies AS study
JOIN studies ON studies.study_name = study.name
JOIN trials AS trial ON trial.study_id = studies.study_id
WHERE study.experiment_id = :experiment AND trial.state IN ('WAITING', 'RUNNING')
"""


def open_trials(database: Database, experiment_id: int) -> set[tuple[StudyRole, str, int, int]]:
    """Role, method and replicate of the study and the number of each trial that waits or runs."""
    try:
        with database.begin() as connection:
            rows = connection.execute(text(OPEN), {"experiment": experiment_id}).all()
    except DBAPIError as error:
        if optuna_tables_missing(error):
            return set()
        raise
    return {(role, method, replicate, number) for role, method, replicate, number in rows}
