"""Questions about whole experiments, over Optuna's tables and ours; each is one statement.

Optuna is not imported: its schema is read as it is. There an infinite value is NULL with a type
beside it, a parameter is a float with its distribution as JSON, and times are UTC without a zone.
Optuna's tables are named without a schema, so that they are found where Optuna finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from storage import lazily as sql
from storage.database import Database
from storage.experiments import Experiments
from storage.records import StudyProgress, StudyRecord, StudyRole, TrialRow, TrialState
from storage.sqlstates import optuna_tables_missing

STATES: Mapping[str, TrialState] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
}
"""Optuna's word → ours."""

VALUE = """
CASE result.value_type WHEN 'INF_POS' THEN float8 'Infinity' WHEN 'INF_NEG' THEN float8 '-Infinity'
                       ELSE result.value END
"""

TRAINED = """
trial.state = 'COMPLETE' AND NOT EXISTS (
    SELECT FROM trial_user_attributes AS note
    WHERE note.trial_id = trial.trial_id AND note.key = 'diverged' AND note.value_json = 'true')
"""
"""Complete, and not diverged: that has the metric's worst value, and is never the best."""

RESTS = """
trial.state = 'WAITING' AND study.role = 'search'
AND (SELECT own.spec -> 'pruner' ->> 'name' FROM shoal.experiments AS own
     WHERE own.id = study.experiment_id) = 'asha_promotion'
AND EXISTS (SELECT FROM trial_intermediate_values AS said WHERE said.trial_id = trial.trial_id)
"""
"""Waits after some epochs where trials pause: it rests until it is promoted."""

PROGRESS = f"""
SELECT study.id, study.experiment_id, study.method, study.replicate, study.name, study.role,
       coalesce(counted.waiting, 0) AS waiting, coalesce(counted.paused, 0) AS paused,
       coalesce(counted.running, 0) AS running,
       coalesce(counted.complete, 0) AS complete, coalesce(counted.pruned, 0) AS pruned,
       coalesce(counted.failed, 0) AS failed,
       spent.epochs, spent.seconds, counted.sign * counted.best AS best,
       EXISTS (SELECT FROM studies WHERE study_name = study.name) AS present
FROM shoal.experiment_studies AS study
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE trial.state = 'WAITING') AS waiting,
           count(*) FILTER (WHERE {RESTS}) AS paused,
           count(*) FILTER (WHERE trial.state = 'RUNNING') AS running,
           count(*) FILTER (WHERE trial.state = 'COMPLETE') AS complete,
           count(*) FILTER (WHERE trial.state = 'PRUNED') AS pruned,
           count(*) FILTER (WHERE trial.state = 'FAIL') AS failed,
           max(wanted.sign) AS sign,
           max(wanted.sign * ({VALUE})) FILTER (WHERE {TRAINED}) AS best
    FROM studies AS optuna
    JOIN trials AS trial ON trial.study_id = optuna.study_id
    LEFT JOIN study_directions AS direction
           ON direction.study_id = optuna.study_id AND direction.objective = 0
    CROSS JOIN LATERAL (
        SELECT CASE WHEN direction.direction = 'MAXIMIZE' THEN 1 ELSE -1 END AS sign
    ) AS wanted
    LEFT JOIN trial_values AS result ON result.trial_id = trial.trial_id AND result.objective = 0
    WHERE optuna.study_name = study.name
) AS counted ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS epochs, coalesce(sum(seconds), 0) AS seconds
    FROM shoal.epochs AS epoch WHERE epoch.study_id = study.id
      AND epoch.trial_id IN (
          SELECT trial.trial_id
          FROM studies AS optuna JOIN trials AS trial ON trial.study_id = optuna.study_id
          WHERE optuna.study_name = study.name)
) AS spent ON true
WHERE study.experiment_id = :experiment_id AND (CAST(:role AS text) IS NULL OR study.role = :role)
ORDER BY study.id
"""  # noqa: S608 (here and below: only our own constants are put in)

# Parts of the statements here and in `storage.pages`: which trials, with what is asked of Optuna's own row …
OF_OUR_STUDIES = f"""
SELECT study.id AS study_order, study.name AS study_name, study.method, study.replicate, trial.number,
       trial.trial_id, trial.state, {VALUE} AS value,
       trial.datetime_start AT TIME ZONE 'UTC' AS started_at,
       trial.datetime_complete AT TIME ZONE 'UTC' AS ended_at,
       direction.direction
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN trials AS trial ON trial.study_id = optuna.study_id
LEFT JOIN study_directions AS direction ON direction.study_id = optuna.study_id AND direction.objective = 0
LEFT JOIN trial_values AS result ON result.trial_id = trial.trial_id AND result.objective = 0
"""  # noqa: S608

CHOSEN = f"""
{OF_OUR_STUDIES}
WHERE study.experiment_id = :experiment_id AND study.role = 'search'
  AND (CAST(:method AS text) IS NULL OR study.method = :method)
"""

# … and everything else about them, looked up by each trial's number: a page costs what it shows, and
# the plan is the same whatever Postgres believes about the sizes of the tables.
ROWS = """
SELECT chosen.study_name, chosen.method, chosen.replicate, chosen.number, chosen.trial_id, chosen.state,
       chosen.value, drawn.names, drawn.numbers, drawn.distributions,
       coalesce(curve.epochs, reported.epochs, 0) AS epochs, coalesce(curve.seconds, 0) AS seconds,
       coalesce(tried.attempts, 0) AS attempts, noted.reason, tried.reason AS attempt_reason,
       coalesce(noted.diverged, curve.diverged, false) AS diverged,
       coalesce(tried.sampler_seconds, 0) AS sampler_seconds, chosen.started_at, chosen.ended_at,
       noted.shared_with, noted.shared_epochs
FROM chosen
LEFT JOIN LATERAL (
    SELECT array_agg(param_name ORDER BY param_id) AS names,
           array_agg(param_value ORDER BY param_id) AS numbers,
           array_agg(distribution_json ORDER BY param_id) AS distributions
    FROM trial_params WHERE trial_id = chosen.trial_id
) AS drawn ON true
LEFT JOIN LATERAL (
    SELECT max(epoch) AS epochs, sum(seconds) AS seconds, bool_or(diverged) AS diverged
    FROM shoal.epochs WHERE trial_id = chosen.trial_id
) AS curve ON true
LEFT JOIN LATERAL (
    -- Of a trial that another client ran; ours have their curve.
    SELECT max(step) AS epochs FROM trial_intermediate_values
    WHERE trial_id = chosen.trial_id AND curve.epochs IS NULL
) AS reported ON true
LEFT JOIN LATERAL (
    SELECT max(attempt.number) AS attempts, sum(sampler_seconds) AS sampler_seconds,
           (array_agg(reason ORDER BY attempt.number DESC))[1] AS reason
    FROM shoal.attempts AS attempt WHERE trial_id = chosen.trial_id
) AS tried ON true
LEFT JOIN LATERAL (
    SELECT max(value_json) FILTER (WHERE key = 'reason') AS reason,
           bool_or(value_json = 'true') FILTER (WHERE key = 'diverged') AS diverged,
           max(value_json) FILTER (WHERE key = 'shoal:shared_with') AS shared_with,
           max(value_json) FILTER (WHERE key = 'shoal:shared_epochs') AS shared_epochs
    FROM trial_user_attributes
    WHERE trial_id = chosen.trial_id
      AND key IN ('reason', 'diverged', 'shoal:shared_with', 'shoal:shared_epochs')
) AS noted ON true
"""

BY_NUMBER = "ORDER BY chosen.study_order, chosen.number"

TRIALS = f"""
WITH chosen AS MATERIALIZED (
    {CHOSEN} AND (CAST(:state AS text) IS NULL OR CAST(trial.state AS text) = :state)
    ORDER BY study.id, trial.number LIMIT :limit OFFSET :offset
)
{ROWS}
{BY_NUMBER}
"""

BEST = f"""
WITH ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY study_name
        ORDER BY CASE WHEN direction = 'MAXIMIZE' THEN -value ELSE value END, number
    ) AS place
    FROM ({CHOSEN} AND {TRAINED}) AS complete
),
chosen AS MATERIALIZED (SELECT * FROM ranked WHERE place = 1)
{ROWS}
{BY_NUMBER}
"""  # noqa: S608

DIRECTION = """
SELECT direction.direction
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN study_directions AS direction ON direction.study_id = optuna.study_id AND direction.objective = 0
WHERE study.experiment_id = :experiment_id
LIMIT 1
"""

Direction: TypeAlias = Literal["maximize", "minimize"]
"""Whether larger or smaller values are better."""


def progress(
    database: Database, experiment_id: int, *, role: StudyRole | None = "search"
) -> list[StudyProgress]:
    """How far every study of an experiment is, in the studies' order; `role` None: of every role."""
    values = {"experiment_id": experiment_id, "role": role}
    try:
        rows = database.rows(PROGRESS, values)
    except sql.DBAPIError as error:
        if not optuna_tables_missing(error):
            raise
        nothing = dict.fromkeys(("waiting", "running", "complete", "pruned", "failed", "epochs"), 0)
        studies = Experiments(database).studies(experiment_id, role=role)
        return [
            StudyProgress(study=study, **nothing, seconds=0.0, best=None, present=False) for study in studies
        ]
    return [_progress(row._asdict()) for row in rows]


def trials(
    database: Database,
    experiment_id: int,
    *,
    method: str | None = None,
    state: TrialState | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[TrialRow]:
    """The trials of an experiment, by study and number; `limit` and `offset` page through them."""
    words = {ours: optunas for optunas, ours in STATES.items()}
    values = {
        "experiment_id": experiment_id,
        "method": method,
        "state": words[state] if state is not None else None,
        "limit": limit,
        "offset": offset,
    }
    return rows_of(database, TRIALS, values)


def best(database: Database, experiment_id: int, *, method: str | None = None) -> list[TrialRow]:
    """The best trial of every study that has one, the earlier one of equals; see `TRAINED`."""
    return rows_of(database, BEST, {"experiment_id": experiment_id, "method": method})


def direction(database: Database, experiment_id: int) -> Direction | None:
    """Whether larger or smaller values are better in an experiment's studies; None before they are made."""
    try:
        rows = database.rows(DIRECTION, {"experiment_id": experiment_id})
    except sql.DBAPIError as error:
        if optuna_tables_missing(error):
            return None
        raise
    return None if not rows else "maximize" if rows[0][0] == "MAXIMIZE" else "minimize"


def decode_parameter(value: float, distribution: str) -> Any:
    """A parameter's value from what Optuna stores: a float, and the distribution as JSON."""
    kind, choices = _describe(distribution)
    if kind.startswith("categorical"):
        return choices[int(value)]
    return int(value) if kind.startswith("int") else float(value)


@lru_cache(maxsize=4096)
def _describe(distribution: str) -> tuple[str, tuple[Any, ...]]:
    """A distribution's kind and choices; the same few texts come back for every trial."""
    described = json.loads(distribution)
    attributes = described.get("attributes", described)
    kind = str(described.get("name", described.get("type", ""))).lower()
    return kind, tuple(attributes.get("choices", ()))


def rows_of(database: Database, statement: str, values: Mapping[str, Any]) -> list[TrialRow]:
    """The rows of a statement that ends in `ROWS`; none before Optuna's tables are made."""
    try:
        return [_trial(row) for row in database.rows(statement, values)]
    except sql.DBAPIError as error:
        if optuna_tables_missing(error):
            return []
        raise


def _progress(row: dict[str, Any]) -> StudyProgress:
    fields = ("id", "experiment_id", "method", "replicate", "name", "role")
    study = StudyRecord(**{field: row.pop(field) for field in fields})
    return StudyProgress(study=study, **row)


def _trial(row: Any) -> TrialRow:
    """A row of `ROWS`, column by column: there may be tens of thousands."""
    (
        study_name, method, replicate, number, trial_id, state, value, names, numbers, distributions,
        epochs, seconds, attempts, noted, of_attempt, diverged, sampler_seconds, started_at, ended_at,
        shared_with, shared_epochs,
    ) = row  # fmt: skip
    drawn = zip(names or (), numbers or (), distributions or (), strict=True)
    return TrialRow(
        study_name=study_name,
        method=method,
        replicate=replicate,
        number=number,
        trial_id=trial_id,
        state=STATES[state],
        value=value,
        params={name: decode_parameter(number, kind) for name, number, kind in drawn},
        epochs=epochs,
        seconds=seconds,
        sampler_seconds=sampler_seconds,
        attempts=attempts,
        reason=str(json.loads(noted)) if noted is not None else of_attempt,
        diverged=diverged,
        started_at=started_at,
        ended_at=ended_at,
        shared_with=str(json.loads(shared_with)) if shared_with is not None else None,
        shared_epochs=int(shared_epochs or 0),
    )
