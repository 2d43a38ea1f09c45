"""Trials that are the same trial in two studies: which of them is trained, and what the others take over.

Trials of one replicate whose values and seed are equal have equal curves, whichever method drew them:
they are *twins*. One of those that run is trained, and is the *leader*; the others follow, keep their
leases, and take over what is stored of it. Who follows is decided here, for one experiment in one
transaction at a time, and noted on the trial with the token of its lease: so of two workers that find
each other's trials at one moment one leads, a note is void once its lease is, and two trials never
wait for each other. For databases whose schema of Optuna's we know; elsewhere nobody has a twin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.curves import Report
from storage.database import OPTUNA_REVISION, Database
from storage.ledger_statements import SEED_KEY

FOLLOWS_KEY = "shoal:follows"
"""System attribute of a trial in Optuna's table: the token of the lease under which it follows a twin."""

LOCKS = 0x5410A1
"""The space of advisory locks that the decisions of experiments use."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial under a lease whose twins are looked for."""

    token: int
    number: int
    """That of its twins: its own, or of a repetition that of the trial that it repeats in the end."""
    seed: int
    after: int
    """The last of its epochs that is stored; 0: none."""


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch as it was reported; see `storage.curves.Report`."""

    epoch: int
    train_loss: float | None
    validation_loss: float | None
    metrics: Mapping[str, float]
    gradient_norm: float | None
    learning_rate: float
    seconds: float
    images_per_second: float
    diverged: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial's twins have for it."""

    leader: int | None
    """The twin (Optuna's id) that is trained; None: this one is to be, after what can be taken over."""
    study_name: str | None = None
    """The study of the twin that got farthest; None: no twin has an epoch."""
    points: tuple[Report, ...] = ()
    """The epochs of that twin after those that were asked from."""
    complete: bool = False
    """Whether the last of its epochs was the last of its training."""


class Twins:
    """Looks for twins, and decides who leads. May be shared by threads."""

    def __init__(self, database: Database, experiment_id: int) -> None:
        self._database = database
        self._experiment_id = experiment_id

    @cached_property
    def _known(self) -> bool:
        return self._database.optuna_revision() == OPTUNA_REVISION

    def look(self, asked: Iterable[Asked]) -> dict[int, Found]:
        """By token, of those whose leases still hold; those of one worker are all to be asked together.

        Each is decided anew. One round trip. Raises `DatabaseUnreachable`.
        """
        rows = [
            {"token": one.token, "number": one.number, "seed": str(one.seed), "after": one.after}
            for one in asked
        ]
        if not rows:
            return {}
        if not self._known:
            return {int(str(row["token"])): Found(leader=None) for row in rows}
        tokens = [row["token"] for row in rows]
        values = {
            "experiment": self._experiment_id,
            "tokens": tokens,
            "asked": json.dumps(rows),
            "locks": LOCKS,
        }
        return {
            token: Found(leader, study_name, tuple(map(_point, points or ())), bool(complete))
            for token, leader, study_name, complete, points in self._database.retrying(
                lambda _unsure: self._database.script(ONE_AT_A_TIME + LOOK, values)
            )
        }


def _point(columns: list[Any]) -> Point:
    return Point(*columns)


ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(%(locks)s, %(experiment)s);"

# Those that are asked for are decided in the order of their tokens, and what was noted of them is void.
# A trial that went back to the queue has lost its seed; its number says it, unless it is a repetition. Where
# a twin by number has failed, its repetitions are twins as well: they name the first trial of their chain.
LOOK = f"""
WITH mine AS MATERIALIZED (
    SELECT said.*, attempt.study_id, study.replicate, attempt.trial_id
    FROM json_to_recordset(CAST(%(asked)s AS json)) AS said(token bigint, number int, seed text, after int)
    JOIN shoal.attempts AS attempt ON attempt.token = said.token AND attempt.token = ANY(%(tokens)s)
     AND attempt.state = 'running' AND attempt.deadline > clock_timestamp()
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
     AND study.experiment_id = %(experiment)s AND study.role = 'search'
    JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    FOR KEY SHARE OF trial
), sibling AS MATERIALIZED (
    SELECT study.id, study.name, study.replicate, studies.study_id AS optuna_id
    FROM shoal.experiment_studies AS study JOIN studies ON studies.study_name = study.name
    WHERE study.experiment_id = %(experiment)s AND study.role = 'search'
      AND study.replicate IN (SELECT replicate FROM mine)
), same_number AS MATERIALIZED (
    SELECT mine.token, sibling.name AS study_name, trial.study_id, trial.trial_id, trial.number, trial.state
    FROM mine
    JOIN sibling ON sibling.replicate = mine.replicate AND sibling.id <> mine.study_id
    JOIN trials AS trial ON trial.study_id = sibling.optuna_id AND trial.number = mine.number
), candidate AS MATERIALIZED (
    SELECT token, study_name, trial_id FROM same_number
    UNION ALL
    SELECT first.token, first.study_name, again.trial_id
    FROM same_number AS first
    JOIN trials AS again ON again.study_id = first.study_id AND again.number > first.number
    JOIN trial_system_attributes AS noted ON noted.trial_id = again.trial_id AND noted.key = 'failed_trial'
     AND noted.value_json = CAST(first.number AS text)
    WHERE first.state = 'FAIL'
), twin AS MATERIALIZED (
    SELECT mine.token, trial.study_name, trial.trial_id,
           (SELECT max(epoch) FROM shoal.epochs WHERE epochs.trial_id = trial.trial_id) AS last,
           EXISTS (SELECT FROM shoal.attempts
                   WHERE attempts.trial_id = trial.trial_id AND attempts.state = 'complete') AS complete,
           held.token AS held,
           EXISTS (SELECT FROM trial_system_attributes AS noted
                   WHERE noted.trial_id = trial.trial_id AND noted.key = '{FOLLOWS_KEY}'
                     AND noted.value_json = CAST(held.token AS text)) AS follows
    FROM mine
    JOIN candidate AS trial ON trial.token = mine.token
    JOIN trial_user_attributes AS seed ON seed.trial_id = trial.trial_id AND seed.key = '{SEED_KEY}'
     AND (seed.value_json = mine.seed OR (
        seed.value_json = 'null' AND NOT EXISTS (
            SELECT FROM trial_user_attributes AS noted
            WHERE noted.trial_id = trial.trial_id AND noted.key = 'shoal:retry_of')))
    LEFT JOIN shoal.attempts AS held
           ON held.trial_id = trial.trial_id AND held.state = 'running' AND held.deadline > clock_timestamp()
    WHERE NOT EXISTS (
        SELECT FROM (SELECT param_name, param_value FROM trial_params
                     WHERE trial_params.trial_id = mine.trial_id) AS own
        FULL JOIN (SELECT param_name, param_value FROM trial_params
                   WHERE trial_params.trial_id = trial.trial_id) AS other USING (param_name)
        WHERE own.param_value IS DISTINCT FROM other.param_value)
), decided AS MATERIALIZED (
    SELECT mine.*, (
        SELECT twin.trial_id FROM twin
        WHERE twin.token = mine.token AND twin.held IS NOT NULL
          AND CASE WHEN twin.held IN (SELECT token FROM mine) THEN twin.held < mine.token
                   ELSE NOT twin.follows END
        ORDER BY twin.held IN (SELECT token FROM mine), twin.held LIMIT 1) AS leader
    FROM mine
), noted AS (
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT trial_id, '{FOLLOWS_KEY}', CAST(token AS text) FROM decided WHERE leader IS NOT NULL
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
    WHERE trial_system_attributes.value_json <> excluded.value_json
), leads AS (
    UPDATE trial_system_attributes AS noted SET value_json = 'null' FROM decided
    WHERE decided.leader IS NULL AND noted.trial_id = decided.trial_id AND noted.key = '{FOLLOWS_KEY}'
)
SELECT decided.token, decided.leader, farthest.study_name, farthest.complete, (
    SELECT json_agg(json_build_array(
        epoch, train_loss, validation_loss, metrics, gradient_norm, learning_rate, seconds,
        images_per_second, diverged) ORDER BY epoch)
    FROM shoal.epochs WHERE epochs.trial_id = farthest.trial_id AND epochs.epoch > decided.after)
FROM decided
LEFT JOIN LATERAL (
    SELECT twin.study_name, twin.trial_id, twin.complete FROM twin
    WHERE twin.token = decided.token AND twin.last IS NOT NULL
    ORDER BY twin.complete DESC, twin.last DESC, twin.trial_id LIMIT 1
) AS farthest ON true
"""  # noqa: S608 (only our own constants are put in)
