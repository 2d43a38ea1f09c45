"""A large experiment written straight into the database, in seconds: no training, no client of Optuna.

All rows are made by the server from `generate_series`; chance comes from a hash of the trial and a
number, so every run makes the same rows. Of a hundred trials 84 are complete, 10 pruned, one
diverged, one failed and one went through two attempts; the last of each study are running and waiting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from storage.database import Database
from storage.experiments import Experiments
from storage.records import ExperimentRecord

SPEC: dict[str, Any] = {
    "seed": 1,
    "data": {"name": "mnist"},
    "model": {"name": "cnn"},
    "fixed": {},
    "space": {
        "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "lambda": {"low": 1e-6, "high": 0.01, "log": True},
        "loss": {"values": ["cross_entropy", "mse", "hinge"]},
        "optimizer": {"values": ["sgd", "momentum", "adam"]},
        "batch_size": {"low": 16, "high": 256},
    },
    "metric": "accuracy",
}

DISTRIBUTIONS: dict[str, tuple[BaseDistribution, str]] = {
    "learning_rate": (FloatDistribution(0.001, 1.0, log=True), "power(10, 3 * {chance} - 3)"),
    "lambda": (FloatDistribution(1e-6, 0.01, log=True), "power(10, 4 * {chance} - 6)"),
    "loss": (CategoricalDistribution(("cross_entropy", "mse", "hinge")), "floor(3 * {chance})"),
    "optimizer": (CategoricalDistribution(("sgd", "momentum", "adam")), "floor(3 * {chance})"),
    "batch_size": (IntDistribution(16, 256), "16 + floor(241 * {chance})"),
}
"""Dimension → its distribution, and SQL for a value as Optuna stores it."""

REASON = "ValueError: the model of this config has no parameters"


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of what."""

    methods: tuple[str, ...] = ("grid", "random", "tpe")
    replicates: int = 4
    trials: int = 10_000
    """Of all studies together."""
    epochs: int = 20
    running: int = 3
    """The last but `waiting` of each study."""
    waiting: int = 2


def chance(number: int) -> str:
    """SQL for a number from 0 to 1 (exclusive), the `number`-th one of a trial."""
    return f"((hashint8(trial_id * 64 + {number}) & 1073741823) / 1073741824.0)"


PICKED = """
CREATE TEMPORARY TABLE picked ON COMMIT DROP AS
SELECT study.id AS study_order, study.name, study.method, optuna.study_id, number,
       CAST(nextval('trials_trial_id_seq') AS integer) AS trial_id, CAST(NULL AS text) AS way, 0 AS epochs
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
CROSS JOIN generate_series(
    0, :trials / :studies - 1 + CASE WHEN study.id - :first < :trials % :studies THEN 1 ELSE 0 END
) AS number
WHERE study.experiment_id = :experiment_id
ORDER BY study.id, number
"""

WAYS = f"""
UPDATE picked SET
    way = CASE WHEN later < :waiting THEN 'waiting' WHEN later < :waiting + :running THEN 'running'
               WHEN {chance(0)} < 0.01 THEN 'failed' WHEN {chance(0)} < 0.02 THEN 'diverged'
               WHEN {chance(0)} < 0.15 AND method <> 'grid' THEN 'pruned'
               WHEN {chance(0)} > 0.99 THEN 'retried' ELSE 'complete' END,
    epochs = CASE WHEN later < :waiting THEN 0 WHEN later < :waiting + :running THEN (:epochs + 1) / 2
                  WHEN {chance(0)} < 0.02 THEN 1
                  WHEN {chance(0)} < 0.15 AND method <> 'grid' THEN greatest(1, :epochs / 2) ELSE :epochs END
FROM (SELECT trial_id AS id, max(number) OVER (PARTITION BY study_order) - number AS later
      FROM picked) AS place
WHERE place.id = trial_id
"""

# The metric rises towards a ceiling that depends on the trial and, a little, on its number and method.
VALUE = f"""
(CASE WHEN way = 'diverged' THEN 0.0 ELSE
 (0.6 + 0.3 * {chance(1)} + 0.05 * number / :trials
      + CASE method WHEN 'tpe' THEN 0.03 WHEN 'random' THEN 0.01 ELSE 0.0 END)
 * (1 - exp(-4.0 * epoch / :epochs)) END)
"""

STATEMENTS = (
    """
    INSERT INTO studies (study_name)
    SELECT name FROM shoal.experiment_studies WHERE experiment_id = :experiment_id ORDER BY id
    """,
    """
    INSERT INTO study_directions (direction, study_id, objective)
    SELECT 'MAXIMIZE', optuna.study_id, 0
    FROM shoal.experiment_studies AS study JOIN studies AS optuna ON optuna.study_name = study.name
    WHERE study.experiment_id = :experiment_id
    """,
    PICKED,
    WAYS,
    """
    INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete)
    SELECT trial_id, number, study_id,
           CAST(CASE way WHEN 'waiting' THEN 'WAITING' WHEN 'running' THEN 'RUNNING'
                         WHEN 'pruned' THEN 'PRUNED' WHEN 'failed' THEN 'FAIL' ELSE 'COMPLETE'
                END AS trialstate),
           CASE WHEN way <> 'waiting' THEN timestamp '2026-01-01' + number * interval '20 seconds' END,
           CASE WHEN way NOT IN ('waiting', 'running')
                THEN timestamp '2026-01-01' + number * interval '20 seconds' + epochs * interval '1 second'
           END
    FROM picked
    """,
    *(
        f"""
        INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT trial_id, '{name}', {value.format(chance=chance(2 + place))}, '{distribution_to_json(kind)}'
        FROM picked WHERE way <> 'waiting'
        """.replace(":", "\\:")
        for place, (name, (kind, value)) in enumerate(DISTRIBUTIONS.items())
    ),
    f"""
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, epoch, {VALUE}, 'FINITE'
    FROM picked CROSS JOIN LATERAL generate_series(1, epochs) AS epoch
    """,
    f"""
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, {VALUE}, 'FINITE' FROM (SELECT *, epochs AS epoch FROM picked) AS ended
    WHERE way IN ('complete', 'retried', 'diverged', 'pruned')
    """,
    """
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, 'diverged', 'true' FROM picked WHERE way = 'diverged'
    UNION ALL
    SELECT trial_id, 'reason', CAST(to_json(CAST(:reason AS text)) AS text) FROM picked WHERE way = 'failed'
    """,
    """
    INSERT INTO shoal.workers (name, host, process, ended_at) VALUES ('big-0', 'here', 1, NULL)
    """,
    """
    INSERT INTO shoal.attempts
        (study_id, trial_id, trial_number, number, worker_id, state, reason, traceback, started_at, ended_at)
    SELECT study_order, trial_id, picked.number, tries, (SELECT max(id) FROM shoal.workers), state,
           CASE WHEN state = 'failed' THEN :reason WHEN state = 'lost' THEN 'its worker is gone' END,
           CASE WHEN state = 'failed' THEN 'Traceback (most recent call last): …' END,
           timestamptz '2026-01-01Z' + picked.number * interval '20 seconds',
           CASE WHEN state <> 'running' THEN timestamptz '2026-01-01Z'
                + picked.number * interval '20 seconds' + epochs * interval '1 second' END
    FROM picked CROSS JOIN LATERAL generate_series(1, CASE way WHEN 'retried' THEN 2 ELSE 1 END) AS tries
    CROSS JOIN LATERAL (
        SELECT CASE WHEN way = 'retried' AND tries = 1 THEN 'lost'
                    WHEN way IN ('retried', 'diverged') THEN 'complete' ELSE way END AS state
    ) AS how
    WHERE way <> 'waiting'
    """,
    f"""
    INSERT INTO shoal.epochs
        (trial_id, epoch, attempt, study_id, trial_number, train_loss, validation_loss, metrics,
         gradient_norm, learning_rate, seconds, images_per_second, diverged)
    SELECT trial_id, epoch, CASE way WHEN 'retried' THEN 2 ELSE 1 END, study_order, number,
           CASE WHEN way <> 'diverged' THEN 2.3 / epoch END,
           CASE WHEN way <> 'diverged' THEN 2.4 / epoch END,
           json_build_object('accuracy', {VALUE}, 'error', 1 - {VALUE}, 'log_loss', 2.4 / epoch),
           1.5, 0.1, 0.5 + {chance(9)}, 60000, way = 'diverged'
    FROM picked CROSS JOIN LATERAL generate_series(1, epochs) AS epoch
    """,
)

FILLED = (
    "trials",
    "trial_values",
    "trial_params",
    "trial_intermediate_values",
    "trial_user_attributes",
    "shoal.attempts",
    "shoal.epochs",
)


def store_big_experiment(database: Database, name: str = "big", size: Size | None = None) -> ExperimentRecord:
    """Write an experiment of that size with all that belongs to it: one transaction, after its creation."""
    size = size or Size()
    spec = SPEC | {
        "experiment": name,
        "fixed": {"epochs": size.epochs},
        "methods": {method: {} for method in size.methods},
        "replicates": size.replicates,
        "budget": {"trials": size.trials // (len(size.methods) * size.replicates) + 1},
    }
    studies = [
        (method, replicate, f"{name}/{method}/{replicate}")
        for replicate in range(size.replicates)
        for method in size.methods
    ]
    experiments = Experiments(database)
    record = experiments.create(name, json.loads(json.dumps(spec)), "0" * 64, {"python": "3.11"}, studies)
    values = {
        "experiment_id": record.id,
        "first": min(study.id for study in experiments.studies(record.id)),
        "studies": len(studies),
        "trials": size.trials,
        "epochs": size.epochs,
        "running": size.running,
        "waiting": size.waiting,
        "reason": REASON,
    }
    with database.begin() as connection:
        for statement in STATEMENTS:
            connection.execute(sqlalchemy.text(statement), values)
        for table in FILLED:  # as autovacuum would before long
            connection.execute(sqlalchemy.text(f"ANALYZE {table}"))
    experiments.set_state(record.id, "running")
    return experiments.get(name)
