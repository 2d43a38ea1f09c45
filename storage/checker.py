"""The history checker: whether what the event log tells and what the tables hold can both be true.

Run after every fault test, and by `shoal db check`. Each rule is one statement over the events of
leases and the tables of trials, attempts and epochs, and returns what breaks it; they only read.
Trials that another Optuna client makes, takes or ends are its own business: the rules are about
what was done under our leases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from storage.database import Database
from storage.retraining_rules import RETRAINED_ONCE, RETRAININGS_ARE_READ
from storage.sqlstates import optuna_tables_missing

Found: TypeAlias = list[tuple[str, str]]
"""Where and what."""

PIECES = {
    "ours": "(CAST(:experiment AS int) IS NULL OR study.experiment_id = :experiment)",
    # Kinds of events that end a lease, and those that end its trial with it.
    "ends": "('completed', 'pruned', 'failed', 'given_up', 'released', 'requeued', 'expired')",
    "final": "('completed', 'pruned', 'failed', 'given_up')",
    "attempt": "'attempt ' || attempt.number || ' of trial ' || attempt.trial_number || ' of ' || study.name",
}
"""What the statements below have in common."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be."""

    rule: str
    where: str
    detail: str


def check_history(
    database: Database, experiment_id: int | None = None, *, at_rest: bool = False
) -> list[Violation]:
    """Check the history of one experiment, or of all; nothing is changed.

    `at_rest`: the caller knows that nobody runs anything, so that no lease may be left. Raises
    `DatabaseUnreachable`.
    """
    values = {"experiment": experiment_id, "at_rest": at_rest}
    try:
        # One snapshot for all rules: what is written meanwhile is not half seen.
        with database.begin() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            return [
                Violation(rule, where, detail)
                for rule, look in RULES.items()
                for where, detail in look(connection, values)
            ]
    except DBAPIError as error:
        if optuna_tables_missing(error):
            return []
        raise


def _find(connection: Connection, values: dict[str, Any], statement: str) -> Found:
    rows = connection.execute(text(statement.format(**PIECES)), values)
    return [(str(where), str(detail)) for where, detail in rows]


def numbers_are_dense(connection: Connection, values: dict[str, Any]) -> Found:
    """The trials of a study are numbered from 0, without gaps and without doubles."""
    return _find(
        connection,
        values,
        """
        SELECT study.name, count(*) || ' trials, ' || count(DISTINCT trial.number) || ' numbers, up to '
               || coalesce(CAST(max(trial.number) AS text), 'none')
        FROM shoal.experiment_studies AS study JOIN studies ON studies.study_name = study.name
        JOIN trials AS trial ON trial.study_id = studies.study_id
        WHERE {ours}
        GROUP BY study.name
        HAVING count(*) <> count(DISTINCT trial.number) OR count(*) <> max(trial.number) + 1
        """,
    )


def a_trial_ends_once(connection: Connection, values: dict[str, Any]) -> Found:
    """A trial is ended by one lease, its newest, and Optuna's table says the same."""
    return _find(
        connection,
        values,
        """
        WITH ended AS (
            SELECT event.study_id, event.trial_id, event.trial_number, count(*) AS times,
                   min(event.kind) AS kind, max(event.token) AS token
            FROM shoal.events AS event WHERE event.kind IN {final}
            GROUP BY event.study_id, event.trial_id, event.trial_number
        ), newest AS (
            SELECT trial_id, max(token) AS token FROM shoal.attempts GROUP BY trial_id
        )
        SELECT 'trial ' || ended.trial_number || ' of ' || study.name,
               CASE WHEN ended.times > 1 THEN 'ended ' || ended.times || ' times'
                    WHEN newest.token IS DISTINCT FROM ended.token THEN 'claimed again after it had ended'
                    ELSE 'ended as ' || ended.kind || ', but Optuna''s table says ' || trial.state END
        FROM ended
        JOIN shoal.experiment_studies AS study ON study.id = ended.study_id AND {ours}
        LEFT JOIN newest ON newest.trial_id = ended.trial_id
        LEFT JOIN trials AS trial ON trial.trial_id = ended.trial_id
        WHERE ended.times > 1 OR newest.token IS DISTINCT FROM ended.token
           OR CAST(trial.state AS text) <> CASE ended.kind
                WHEN 'completed' THEN 'COMPLETE' WHEN 'pruned' THEN 'PRUNED' ELSE 'FAIL' END
        """,
    )


def attempts_are_told(connection: Connection, values: dict[str, Any]) -> Found:
    """Every lease was claimed once, and ended once as its attempt says, if it has ended."""
    return _find(
        connection,
        values,
        """
        WITH told AS (
            SELECT token, count(*) FILTER (WHERE kind = 'claimed') AS claims,
                   count(*) FILTER (WHERE kind IN {ends}) AS ends,
                   min(kind) FILTER (WHERE kind IN {ends}) AS kind
            FROM shoal.events WHERE token IS NOT NULL GROUP BY token
        )
        SELECT {attempt},
               'is ' || attempt.state || '; the log tells of ' || coalesce(told.claims, 0) || ' claims and '
               || coalesce(told.ends, 0) || ' ends' || coalesce(' (' || told.kind || ')', '')
        FROM shoal.attempts AS attempt
        JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id AND {ours}
        LEFT JOIN told ON told.token = attempt.token
        WHERE attempt.token >= (SELECT min(token) FROM shoal.events WHERE kind = 'claimed')
          AND (coalesce(told.claims, 0) <> 1
            OR coalesce(told.ends, 0) <> CASE attempt.state WHEN 'running' THEN 0 ELSE 1 END
            OR NOT coalesce(told.kind = ANY(CASE attempt.state
                WHEN 'complete' THEN ARRAY['completed'] WHEN 'pruned' THEN ARRAY['pruned']
                WHEN 'failed' THEN ARRAY['failed', 'requeued', 'given_up']
                WHEN 'lost' THEN ARRAY['expired', 'given_up'] ELSE ARRAY['released'] END), true))
        """,
    )


def attempts_are_monotone(connection: Connection, values: dict[str, Any]) -> Found:
    """Attempts count from 1 without gaps; tokens grow with them, and one begins after the other ended."""
    return _find(
        connection,
        values,
        """
        WITH attempt AS (
            SELECT *, row_number() OVER trial AS place, lag(token) OVER trial AS token_before,
                   lag(ended_at) OVER trial AS ended_before, lag(state) OVER trial AS state_before
            FROM shoal.attempts
            WINDOW trial AS (PARTITION BY trial_id ORDER BY number)
        )
        SELECT {attempt}, CASE
                WHEN place <> attempt.number THEN 'comes at place ' || place
                WHEN token <= token_before THEN 'its token ' || token || ' follows ' || token_before
                ELSE 'began before the one before it had ended' END
        FROM attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id AND {ours}
        WHERE place <> attempt.number OR token <= token_before OR state_before = 'running'
           OR started_at < ended_before
        """,
    )


def nothing_after_the_end(connection: Connection, values: dict[str, Any]) -> Found:
    """Nothing is written under a lease that has ended or was taken back; refusals are no writes."""
    return _find(
        connection,
        values,
        """
        WITH ended AS (
            SELECT token, min(id) AS id FROM shoal.events WHERE kind IN {ends} GROUP BY token
        )
        SELECT 'trial ' || event.trial_number || ' of ' || study.name,
               event.kind || ' by token ' || event.token || ' after its lease had ended'
        FROM shoal.events AS event JOIN ended ON ended.token = event.token AND event.id > ended.id
        JOIN shoal.experiment_studies AS study ON study.id = event.study_id AND {ours}
        WHERE event.kind <> 'refused'
        UNION ALL
        SELECT {attempt}, 'epoch ' || point.epoch || ' was written after it had ended'
        FROM shoal.epochs AS point
        JOIN shoal.attempts AS attempt ON attempt.trial_id = point.trial_id AND attempt.number = point.attempt
        JOIN shoal.experiment_studies AS study ON study.id = point.study_id AND {ours}
        WHERE point.written_at > attempt.ended_at
        """,
    )


def steps_increase(connection: Connection, values: dict[str, Any]) -> Found:
    """Within an attempt a later epoch was written later; in an ended trial no older attempt goes beyond."""
    return _find(
        connection,
        values,
        """
        WITH point AS (
            SELECT *, lag(epoch) OVER attempt AS epoch_before, lag(written_at) OVER attempt AS written_before,
                   lag(attempt) OVER trial AS attempt_before
            FROM shoal.epochs
            WINDOW attempt AS (PARTITION BY trial_id, attempt ORDER BY epoch),
                   trial AS (PARTITION BY trial_id ORDER BY epoch)
        )
        SELECT 'trial ' || point.trial_number || ' of ' || study.name, CASE
                WHEN written_at < written_before
                THEN 'epoch ' || epoch || ' was written before ' || epoch_before
                ELSE 'epoch ' || epoch || ' is of an older attempt than the one before it' END
        FROM point
        JOIN shoal.experiment_studies AS study ON study.id = point.study_id AND {ours}
        LEFT JOIN trials AS trial ON trial.trial_id = point.trial_id
        WHERE written_at < written_before
           OR (attempt < attempt_before AND trial.state IN ('COMPLETE', 'PRUNED'))
        """,
    )


def curves_agree(connection: Connection, values: dict[str, Any]) -> Found:
    """Every point of our curves is a report in Optuna's table, and finite there."""
    return _find(
        connection,
        values,
        """
        SELECT 'trial ' || point.trial_number || ' of ' || study.name,
               'epoch ' || point.epoch || CASE WHEN report.step IS NULL
               THEN ' is no report in Optuna''s table' ELSE ' is not finite in Optuna''s table' END
        FROM shoal.epochs AS point
        JOIN shoal.experiment_studies AS study ON study.id = point.study_id AND {ours}
        JOIN trials AS trial ON trial.trial_id = point.trial_id
        LEFT JOIN trial_intermediate_values AS report
               ON report.trial_id = point.trial_id AND report.step = point.epoch
        WHERE report.step IS NULL OR report.intermediate_value_type <> 'FINITE'
           OR NOT coalesce(report.intermediate_value > '-Infinity'
                           AND report.intermediate_value < 'Infinity', false)
        """,
    )


def values_are_finite(connection: Connection, values: dict[str, Any]) -> Found:
    """A trial that we completed has one value; no trial that we ended has one that is not finite."""
    return _find(
        connection,
        values,
        """
        SELECT 'trial ' || event.trial_number || ' of ' || study.name,
               CASE WHEN result.trial_id IS NULL THEN 'is complete without a value'
               ELSE 'has the value '
                    || coalesce(CAST(result.value AS text), CAST(result.value_type AS text)) END
        FROM shoal.events AS event
        JOIN shoal.experiment_studies AS study ON study.id = event.study_id AND {ours}
        JOIN trials AS trial ON trial.trial_id = event.trial_id
        LEFT JOIN trial_values AS result ON result.trial_id = event.trial_id
        WHERE event.kind IN {final}
          AND ((event.kind = 'completed' AND result.trial_id IS NULL)
            OR (result.trial_id IS NOT NULL AND NOT coalesce(result.value_type = 'FINITE'
                AND result.value > '-Infinity' AND result.value < 'Infinity', false)))
        """,
    )


def grid_points_once(connection: Connection, values: dict[str, Any]) -> Found:
    """A point of a grid is one trial of its study; only the repetition of a failed one has it again."""
    return _find(
        connection,
        values,
        """
        SELECT study.name, 'the point ' || min(point.value_json) || ' is trials '
               || string_agg(CAST(trial.number AS text), ', ' ORDER BY trial.number)
        FROM shoal.experiment_studies AS study JOIN studies ON studies.study_name = study.name
        JOIN trials AS trial ON trial.study_id = studies.study_id
        JOIN trial_user_attributes AS point ON point.trial_id = trial.trial_id AND point.key = 'shoal:grid'
        WHERE {ours} AND NOT (trial.state = 'FAIL' AND EXISTS (
            SELECT FROM shoal.events AS event
            WHERE event.kind = 'retried' AND event.study_id = study.id AND event.trial_id = trial.trial_id))
        GROUP BY study.name, md5(point.value_json)
        HAVING count(*) > 1
        """,
    )


def retrained_once(connection: Connection, values: dict[str, Any]) -> Found:
    """A winner's fresh seed is one trial; only the repetition of a failed one has it again."""
    return _find(connection, values, RETRAINED_ONCE)


def retrainings_are_read(connection: Connection, values: dict[str, Any]) -> Found:
    """A retraining that we completed has read the test set once, and no other trial has.

    Of two trials of one winner's seed (another client may copy trials) the first that ended has.
    """
    return _find(connection, values, RETRAININGS_ARE_READ)


def repeated_once(connection: Connection, values: dict[str, Any]) -> Found:
    """A trial is repeated once, and only if it failed."""
    return _find(
        connection,
        values,
        """
        SELECT study.name, CASE
                    WHEN count(*) > 1 THEN 'trial ' || noted.value_json || ' has the repetitions '
                    || string_agg(CAST(later.number AS text), ', ' ORDER BY later.number)
               ELSE 'trial ' || noted.value_json || ' is repeated, but has not failed' END
        FROM shoal.experiment_studies AS study JOIN studies ON studies.study_name = study.name
        JOIN trials AS later ON later.study_id = studies.study_id
        JOIN trial_user_attributes AS noted
          ON noted.trial_id = later.trial_id AND noted.key = 'shoal:retry_of'
        LEFT JOIN trials AS trial ON trial.study_id = studies.study_id
              AND CAST(trial.number AS text) = noted.value_json AND trial.state = 'FAIL'
        WHERE {ours}
        GROUP BY study.name, noted.value_json
        HAVING count(*) > 1 OR count(trial.trial_id) = 0
        """,
    )


def running_under_a_lease(connection: Connection, values: dict[str, Any]) -> Found:
    """A trial that we made RUNNING has a lease; at rest there are none.

    One that began after our last lease on it ended was taken from the queue by another client.
    """
    return _find(
        connection,
        values,
        """
        WITH newest AS (
            SELECT DISTINCT ON (trial_id) * FROM shoal.attempts ORDER BY trial_id, number DESC
        )
        SELECT 'trial ' || newest.trial_number || ' of ' || study.name, CASE WHEN newest.state = 'running'
               THEN 'attempt ' || newest.number || ' still runs' ELSE 'is RUNNING without a lease' END
        FROM newest
        JOIN shoal.experiment_studies AS study ON study.id = newest.study_id AND {ours}
        LEFT JOIN trials AS trial ON trial.trial_id = newest.trial_id
        WHERE (:at_rest AND newest.state = 'running')
           OR (newest.state <> 'running' AND trial.state = 'RUNNING'
               AND trial.datetime_start <= timezone('UTC', newest.ended_at))
        """,
    )


RULES: dict[str, Callable[[Connection, dict[str, Any]], Found]] = {
    "trial numbers are dense": numbers_are_dense,
    "a trial ends once": a_trial_ends_once,
    "attempts and events agree": attempts_are_told,
    "attempts are monotone": attempts_are_monotone,
    "nothing is written after the end": nothing_after_the_end,
    "steps increase": steps_increase,
    "curves and reports agree": curves_agree,
    "values are finite": values_are_finite,
    "a grid point is one trial": grid_points_once,
    "a winner's seed is one trial": retrained_once,
    "retrainings are read once": retrainings_are_read,
    "a failed trial is repeated once": repeated_once,
    "running trials have leases": running_under_a_lease,
}
"""Rule → what looks for violations of it."""
