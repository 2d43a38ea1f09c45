"""An experiment in which every string that a user can choose is markup."""

from __future__ import annotations

import json

import sqlalchemy

from storage.database import Database
from storage.records import ExperimentRecord
from tests.contracts.big_experiment import Size, store_big_experiment

EVIL = """<script>document.title="taken"</script>"><img src=x onerror="document.title='taken'">"""

STATEMENTS = (
    """UPDATE shoal.experiments SET name = :evil,
       spec = CAST(replace(CAST(spec AS text), '"accuracy"', :quoted) AS json)""",
    "UPDATE shoal.experiment_studies SET name = name || :evil, method = :evil",
    "UPDATE studies SET study_name = study_name || :evil",
    "UPDATE trial_params SET param_name = :evil WHERE param_name = 'loss'",
    """UPDATE trial_params SET distribution_json = replace(distribution_json, '"hinge"', :quoted),
       param_value = CASE WHEN distribution_json LIKE '%hinge%' THEN 2 ELSE param_value END""",
    "UPDATE trial_user_attributes SET value_json = :quoted WHERE key = 'reason'",
    "UPDATE shoal.attempts SET reason = :evil, traceback = :evil WHERE state <> 'running'",
    "UPDATE shoal.workers SET name = :evil, host = :evil",
    "UPDATE shoal.epochs SET metrics = json_build_object(CAST(:evil AS text), 0.5)",
)


def store_evil_experiment(database: Database, evil: str = EVIL) -> ExperimentRecord:
    """One study of twenty trials, hostile in every name, value and reason."""
    record = store_big_experiment(database, "evil", Size(methods=("tpe",), replicates=1, trials=20, epochs=3))
    with database.begin() as connection:
        # So that there is a failed one among so few.
        connection.execute(sqlalchemy.text(
            "UPDATE trials SET state = 'FAIL' WHERE number = 1"
        ))  # fmt: skip
        connection.execute(sqlalchemy.text(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT trial_id, 'reason', '\"\"' FROM trials WHERE number = 1 ON CONFLICT DO NOTHING"
        ))  # fmt: skip
        for statement in STATEMENTS:
            connection.execute(sqlalchemy.text(statement), {"evil": evil, "quoted": json.dumps(evil)})
    return record
