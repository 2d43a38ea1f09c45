"""What the web view asks: aggregates, one page of a table, a sample of trials; each is one statement.

Nothing here grows with an experiment but the work of the database: a page of 50 trials, the points
at which a best-so-far curve moves, a few hundred lines of parallel coordinates. As `storage.queries`
this reads Optuna's tables as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from storage.database import Database
from storage.metric_values import ToldState
from storage.page_values import (
    AttemptView,
    ExperimentOverview,
    Improvement,
    SampledTrial,
    Slot,
    WorkerView,
)
from storage.queries import BY_NUMBER, OF_OUR_STUDIES, RESTS, ROWS, STATES, TRAINED, VALUE, rows_of
from storage.records import ExperimentRecord, StudyRecord, TrialRow
from storage.sqlstates import optuna_tables_missing

OF_THE_SEARCH = "(study.role = 'search' OR study.id = CAST(:study_id AS integer))"
"""Where studies that retrain winners are shown only if one of them is asked for."""

READ_ONLY = "-c default_transaction_read_only=on"
"""What the view's connections begin with: a mistake in a page can't write."""

Sort: TypeAlias = Literal["number", "value", "worst", "started", "ended"]

BY_NUMBER_LAST = "chosen.study_order, chosen.number"

SORTS: Mapping[Sort, str] = {
    "number": BY_NUMBER_LAST,
    "value": "CASE WHEN chosen.direction = 'MAXIMIZE' THEN -chosen.value ELSE chosen.value END NULLS LAST, "
    + BY_NUMBER_LAST,
    "worst": "CASE WHEN chosen.direction = 'MAXIMIZE' THEN chosen.value ELSE -chosen.value END NULLS LAST, "
    + BY_NUMBER_LAST,
    "started": f"chosen.started_at DESC NULLS LAST, {BY_NUMBER_LAST}",
    "ended": f"chosen.ended_at DESC NULLS LAST, {BY_NUMBER_LAST}",
}
"""How a table of trials may be sorted: best value first, worst first, newest first."""


EXPERIMENT = """
SELECT id, name, spec, space_hash, state, stop_requested, created_at, updated_at, environment
FROM shoal.experiments WHERE id = :id
"""

STUDY = """
SELECT study.id, study.experiment_id, study.method, study.replicate, study.name, study.role
FROM shoal.experiment_studies AS study WHERE study.id = :id
"""

OPTUNA_STUDIES = """
SELECT study.id, optuna.study_id FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name WHERE study.experiment_id = :experiment_id
"""

EXPERIMENTS = f"""
SELECT experiment.id, experiment.name, experiment.state, experiment.spec, experiment.created_at,
       experiment.updated_at, counted.studies, counted.waiting - counted.paused AS waiting, counted.paused,
       counted.running, counted.complete, counted.pruned, counted.failed, counted.sign * counted.best AS best
FROM (SELECT * FROM shoal.experiments ORDER BY id DESC LIMIT :limit OFFSET :offset) AS experiment
LEFT JOIN LATERAL (
    SELECT count(DISTINCT study.id) AS studies,
           count(*) FILTER (WHERE trial.state = 'WAITING') AS waiting,
           count(*) FILTER (WHERE {RESTS}) AS paused,
           count(*) FILTER (WHERE trial.state = 'RUNNING') AS running,
           count(*) FILTER (WHERE trial.state = 'COMPLETE') AS complete,
           count(*) FILTER (WHERE trial.state = 'PRUNED') AS pruned,
           count(*) FILTER (WHERE trial.state = 'FAIL') AS failed,
           max(wanted.sign) AS sign, max(wanted.sign * ({VALUE})) FILTER (WHERE {TRAINED}) AS best
    FROM shoal.experiment_studies AS study
    LEFT JOIN studies AS optuna ON optuna.study_name = study.name
    LEFT JOIN trials AS trial ON trial.study_id = optuna.study_id
    LEFT JOIN study_directions AS direction
           ON direction.study_id = optuna.study_id AND direction.objective = 0
    CROSS JOIN LATERAL (
        SELECT CASE WHEN direction.direction = 'MAXIMIZE' THEN 1 ELSE -1 END AS sign
    ) AS wanted
    LEFT JOIN trial_values AS result ON result.trial_id = trial.trial_id AND result.objective = 0
    WHERE study.experiment_id = experiment.id AND study.role = 'search'
) AS counted ON true
ORDER BY experiment.id DESC
"""  # noqa: S608 (here and below: only our own constants are put in)

EXPERIMENTS_ALONE = """
SELECT experiment.id, experiment.name, experiment.state, experiment.spec, experiment.created_at,
       experiment.updated_at,
       (SELECT count(*) FROM shoal.experiment_studies AS study
        WHERE study.experiment_id = experiment.id AND study.role = 'search') AS studies,
       0 AS waiting, 0 AS paused, 0 AS running, 0 AS complete, 0 AS pruned, 0 AS failed,
       CAST(NULL AS float8) AS best
FROM shoal.experiments AS experiment ORDER BY experiment.id DESC LIMIT :limit OFFSET :offset
"""
"""Before anybody has opened Optuna's storage in this database."""

# Only the points at which a curve moves, and its end.
IMPROVEMENTS = f"""
SELECT study_id, epochs, trials, sign * best AS best
FROM (
    SELECT *, lag(best) OVER curve AS before, row_number() OVER (
               PARTITION BY study_id ORDER BY ended_at DESC, number DESC) AS from_end
    FROM (
        SELECT study_id, number, ended_at, sign, sum(epochs) OVER so_far AS epochs,
               count(*) OVER so_far AS trials, max(value) OVER so_far AS best
        FROM (
            SELECT study.id AS study_id, trial.number, trial.datetime_complete AS ended_at, wanted.sign,
                   CASE WHEN {TRAINED} THEN wanted.sign * ({VALUE}) END AS value,
                   coalesce((SELECT max(epoch) FROM shoal.epochs WHERE trial_id = trial.trial_id),
                            (SELECT max(step) FROM trial_intermediate_values WHERE trial_id = trial.trial_id),
                            0) AS epochs
            FROM shoal.experiment_studies AS study
            JOIN studies AS optuna ON optuna.study_name = study.name
            JOIN trials AS trial ON trial.study_id = optuna.study_id
            LEFT JOIN study_directions AS direction
                   ON direction.study_id = optuna.study_id AND direction.objective = 0
            CROSS JOIN LATERAL (
                SELECT CASE WHEN direction.direction = 'MAXIMIZE' THEN 1 ELSE -1 END AS sign
            ) AS wanted
            LEFT JOIN trial_values AS result ON result.trial_id = trial.trial_id AND result.objective = 0
            WHERE study.experiment_id = :experiment_id AND {OF_THE_SEARCH}
              AND (CAST(:study_id AS integer) IS NULL OR study.id = :study_id)
              AND trial.state IN ('COMPLETE', 'PRUNED', 'FAIL')
        ) AS ended
        WINDOW so_far AS (PARTITION BY study_id ORDER BY ended_at, number)
    ) AS summed
    WINDOW curve AS (PARTITION BY study_id ORDER BY ended_at, number)
) AS marked
WHERE best IS DISTINCT FROM before OR from_end = 1
ORDER BY study_id, trials
"""  # noqa: S608

# The best ones, and of the others every so-manieth.
SAMPLE = f"""
SELECT chosen.trial_id, chosen.number, chosen.study_order AS study_id, chosen.method, chosen.replicate,
       chosen.state, chosen.value, drawn.names, drawn.numbers, drawn.distributions
FROM (
    SELECT *, row_number() OVER (
               ORDER BY CASE WHEN direction = 'MAXIMIZE' THEN -value ELSE value END, trial_id) AS place,
           row_number() OVER (ORDER BY trial_id) AS turn, count(*) OVER () AS total
    FROM ({OF_OUR_STUDIES}
          WHERE study.experiment_id = :experiment_id AND {OF_THE_SEARCH}
            AND (CAST(:study_id AS integer) IS NULL OR study.id = :study_id)
            AND trial.state IN ('COMPLETE', 'PRUNED')
            AND result.value_type = 'FINITE'
            AND NOT EXISTS (
                SELECT FROM trial_user_attributes AS note
                WHERE note.trial_id = trial.trial_id AND note.key = 'diverged' AND note.value_json = 'true')
    ) AS ended
) AS chosen
CROSS JOIN LATERAL (
    SELECT array_agg(param_name ORDER BY param_id) AS names,
           array_agg(param_value ORDER BY param_id) AS numbers,
           array_agg(distribution_json ORDER BY param_id) AS distributions
    FROM trial_params WHERE trial_id = chosen.trial_id
) AS drawn
WHERE (chosen.place <= :best OR chosen.turn % greatest(1, chosen.total / :others) = 0)
  AND drawn.names IS NOT NULL
ORDER BY chosen.place DESC
"""  # noqa: S608

TRIALS_PAGE = """
WITH chosen AS MATERIALIZED (
    SELECT * FROM ({chosen}
        WHERE study.experiment_id = :experiment_id AND {asked}
          AND (CAST(:study_id AS integer) IS NULL OR study.id = :study_id)
          AND (CAST(:method AS text) IS NULL OR study.method = :method)
          AND (CAST(:state AS text) IS NULL OR CAST(trial.state AS text) = :state)
          AND (CAST(:rests AS boolean) IS NULL OR ({rests}) = :rests)
    ) AS chosen
    ORDER BY {order} LIMIT :limit OFFSET :offset
)
{rows}
ORDER BY {order}
"""

TRIAL = f"""
WITH chosen AS MATERIALIZED ({OF_OUR_STUDIES} WHERE trial.trial_id = :trial_id)
{ROWS}
{BY_NUMBER}
"""

STUDY_OF_TRIAL = """
SELECT study.id, study.experiment_id, study.method, study.replicate, study.name, study.role
FROM trials AS trial
JOIN studies AS optuna ON optuna.study_id = trial.study_id
JOIN shoal.experiment_studies AS study ON study.name = optuna.study_name
WHERE trial.trial_id = :id
"""

ATTEMPTS = """
SELECT attempt.number, worker.name AS worker, worker.host, attempt.state, attempt.reason, attempt.traceback,
       attempt.started_at, attempt.ended_at, attempt.sampler_seconds
FROM shoal.attempts AS attempt JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE attempt.trial_id = :trial_id ORDER BY attempt.number
"""

SLOTS = """
SELECT worker.id AS worker_id, worker.name AS worker, worker.host, worker.process,
       experiment.id AS experiment_id, experiment.name AS experiment, study.id AS study_id,
       study.name AS study_name, study.method, study.replicate, attempt.trial_id, attempt.trial_number,
       attempt.number AS attempt,
       CAST(extract(epoch FROM clock_timestamp() - attempt.started_at) AS float8) AS seconds,
       coalesce(latest.epoch, 0) AS epochs,
       CAST(latest.metrics ->> CAST(experiment.spec ->> 'metric' AS text) AS float8) AS metric,
       CAST(extract(epoch FROM clock_timestamp() - latest.written_at) AS float8) AS quiet_seconds,
       attempt.deadline >= clock_timestamp() AS alive
FROM shoal.attempts AS attempt
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.experiments AS experiment ON experiment.id = study.experiment_id
LEFT JOIN LATERAL (
    SELECT epoch, metrics, written_at FROM shoal.epochs WHERE trial_id = attempt.trial_id
    ORDER BY epoch DESC LIMIT 1
) AS latest ON true
WHERE attempt.state = 'running'
ORDER BY alive DESC, worker.id, attempt.started_at, attempt.id
LIMIT :limit
"""

WORKERS = """
SELECT worker.id, worker.name, worker.host, worker.process, worker.started_at,
       count(attempt.id) AS running,
       count(attempt.id) FILTER (WHERE attempt.deadline >= clock_timestamp()) AS alive
FROM shoal.workers AS worker
LEFT JOIN shoal.attempts AS attempt ON attempt.worker_id = worker.id AND attempt.state = 'running'
WHERE worker.ended_at IS NULL
GROUP BY worker.id
ORDER BY alive DESC, worker.id DESC
LIMIT :limit
"""

# Everything that can change what a page shows: states and counts of trials, epochs of those that run,
# attempts, the experiment's own row. Cheap, for every open page asks every few seconds.
VERSION = """
SELECT md5(concat_ws(' ', experiment.updated_at, experiment.state, counted.*, attempted.*))
FROM (SELECT max(updated_at) AS updated_at, string_agg(state, ',' ORDER BY id) AS state
      FROM shoal.experiments WHERE :experiment_id IN (0, id)) AS experiment
CROSS JOIN (
    SELECT count(*), count(*) FILTER (WHERE trial.state = 'RUNNING'),
           count(*) FILTER (WHERE trial.state = 'WAITING'), max(trial.trial_id), max(trial.datetime_complete),
           sum((SELECT max(epoch) FROM shoal.epochs WHERE trial_id = trial.trial_id))
               FILTER (WHERE trial.state = 'RUNNING')
    FROM shoal.experiment_studies AS study
    JOIN studies AS optuna ON optuna.study_name = study.name
    JOIN trials AS trial ON trial.study_id = optuna.study_id
    WHERE :experiment_id IN (0, study.experiment_id)
) AS counted
CROSS JOIN (
    SELECT count(*), max(attempt.id), count(*) FILTER (WHERE attempt.state = 'running'),
           count(*) FILTER (WHERE attempt.state = 'running' AND attempt.deadline >= clock_timestamp())
    FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    WHERE :experiment_id IN (0, study.experiment_id)
) AS attempted
"""

VERSION_ALONE = """
SELECT md5(coalesce(string_agg(concat_ws(' ', id, state, updated_at), ',' ORDER BY id), ''))
FROM shoal.experiments WHERE :experiment_id IN (0, id)
"""


class Pages:
    """Reads for the web view. May be shared by threads.

    Raises `DatabaseUnreachable`; what doesn't exist is None.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def version(self, experiment_id: int | None = None) -> str:
        """A text that changes when anything shown of the experiment does; None: of any experiment."""
        values = {"experiment_id": 0 if experiment_id is None else experiment_id}
        found = self._all(VERSION, values, VERSION_ALONE)
        return str(found[0][0])

    def experiments(self, *, limit: int, offset: int = 0) -> list[ExperimentOverview]:
        """The newest experiments first."""
        rows = self._all(EXPERIMENTS, {"limit": limit, "offset": offset}, EXPERIMENTS_ALONE)
        return [ExperimentOverview(**row._mapping) for row in rows]

    def experiment(self, experiment_id: int) -> ExperimentRecord | None:
        """An experiment by its id."""
        rows = self._all(EXPERIMENT, {"id": experiment_id})
        return ExperimentRecord(**rows[0]._mapping) if rows else None

    def study(self, study_id: int) -> StudyRecord | None:
        """One of our studies by its id."""
        rows = self._all(STUDY, {"id": study_id})
        return StudyRecord(**rows[0]._mapping) if rows else None

    def study_of_trial(self, trial_id: int) -> StudyRecord | None:
        """The study of a trial, if it is one of ours."""
        rows = self._all(STUDY_OF_TRIAL, {"id": trial_id})
        return StudyRecord(**rows[0]._mapping) if rows else None

    def optuna_studies(self, experiment_id: int) -> dict[int, int]:
        """Our ids of the experiment's studies → Optuna's, for links to its dashboard."""
        return {row[0]: row[1] for row in self._all(OPTUNA_STUDIES, {"experiment_id": experiment_id})}

    def improvements(self, experiment_id: int, study_id: int | None = None) -> list[Improvement]:
        """The best-so-far curves of an experiment's studies, or of one: where they move, and their ends.

        Trials count in the order in which they ended, with all their epochs.
        """
        rows = self._all(IMPROVEMENTS, {"experiment_id": experiment_id, "study_id": study_id})
        return [Improvement(**row._mapping) for row in rows]

    def sample(
        self, experiment_id: int, study_id: int | None = None, *, best: int, others: int
    ) -> list[SampledTrial]:
        """The best trials with a finite value and about so many others, evenly over time; the best last."""
        values = {"experiment_id": experiment_id, "study_id": study_id, "best": best, "others": others}
        return [
            SampledTrial(**dict(row._mapping) | {"state": STATES[row.state]})
            for row in self._all(SAMPLE, values)
        ]

    def trials(
        self,
        experiment_id: int,
        *,
        study_id: int | None = None,
        method: str | None = None,
        state: ToldState | None = None,
        sort: Sort = "number",
        limit: int,
        offset: int = 0,
    ) -> list[TrialRow]:
        """One page of a table of trials; those that have paused do not count as waiting."""
        words: dict[ToldState, str] = {ours: optunas for optunas, ours in STATES.items()}
        words["paused"] = words["waiting"]
        statement = TRIALS_PAGE.format(
            chosen=OF_OUR_STUDIES, asked=OF_THE_SEARCH, rests=RESTS, rows=ROWS, order=SORTS[sort]
        )
        values = {
            "experiment_id": experiment_id,
            "study_id": study_id,
            "method": method,
            "state": words[state] if state is not None else None,
            "rests": state == "paused" if state in ("paused", "waiting") else None,
            "limit": limit,
            "offset": offset,
        }
        return rows_of(self.database, statement, values)

    def trial(self, trial_id: int) -> TrialRow | None:
        """A trial of one of our studies, by Optuna's id."""
        rows = rows_of(self.database, TRIAL, {"trial_id": trial_id})
        return rows[0] if rows else None

    def attempts(self, trial_id: int) -> list[AttemptView]:
        """A trial's attempts by number."""
        return [AttemptView(**row._mapping) for row in self._all(ATTEMPTS, {"trial_id": trial_id})]

    def slots(self, *, limit: int) -> list[Slot]:
        """The trials that run now, in all experiments, by worker; those whose lease ran out last."""
        return [Slot(**row._mapping) for row in self._all(SLOTS, {"limit": limit})]

    def workers(self, *, limit: int) -> list[WorkerView]:
        """Workers that have not said that they ended, those that hold live leases first."""
        return [WorkerView(**row._mapping) for row in self._all(WORKERS, {"limit": limit})]

    def _all(
        self, statement: str, values: Mapping[str, object], without_optuna: str | None = None
    ) -> Sequence[Any]:
        try:
            with self.database.begin() as connection:
                return connection.execute(text(statement), dict(values)).all()
        except DBAPIError as error:
            if not optuna_tables_missing(error):
                raise
        if without_optuna is None:
            return []
        with self.database.begin() as connection:
            return connection.execute(text(without_optuna), dict(values)).all()


def read_only(url: str) -> str:
    """The same URL for connections that only read; options that it has already are kept."""
    parsed = make_url(url)
    given = parsed.query.get("options", "")
    options = " ".join([*([given] if isinstance(given, str) else given), READ_ONLY]).strip()
    return parsed.update_query_dict({"options": options}).render_as_string(hide_password=False)
