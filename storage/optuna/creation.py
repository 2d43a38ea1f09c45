"""Making trials: any number, with all that is known of them, in one round trip.

The study's row is locked first, then a second statement counts: it sees what whoever held the lock
before has stored, where one statement alone would still see the moment before it waited. Stock Optuna
locks the same row, so numbers are dense and distinct beside its writers. FOR NO KEY UPDATE keeps those
out as well as their own FOR UPDATE does, and does not block the checks of foreign keys.

If the connection breaks between the commit and its acknowledgement, nobody can tell whether the trials
were made: a new trial carries nothing that would identify its maker. They are made (again), since a
trial too many costs a number and a trial that was promised and is not there costs an experiment.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from storage.optuna.values import checked_key, checked_step, local_time, utc_time
from storage.optuna.wire import Wire
from storage.optuna.writes import NOW
from storage.values import numbers

logger = logging.getLogger(__name__)

_LOCK = "SELECT FROM studies WHERE study_id = %s FOR NO KEY UPDATE;"

_TRIALS = f"""
WITH first AS (
    SELECT coalesce(max(number), %s) + 1 AS number FROM trials WHERE study_id = %s AND trial_id >= %s
), new AS (
    INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
    SELECT first.number + n.nth - 1, study_id, n.state::trialstate,
           CASE WHEN n.fresh THEN {NOW} ELSE n.start END, n.complete
    FROM unnest(%s::text[], %s::bool[], %s::timestamp[], %s::timestamp[])
        WITH ORDINALITY AS n(state, fresh, start, complete, nth), first, studies
    WHERE study_id = %s ORDER BY n.nth
    RETURNING trial_id, number, datetime_start
)"""  # noqa: S608 (made of our own constants, here and below)

_JOIN = "JOIN new ON new.number = (SELECT number FROM first) + w.nth ORDER BY w.place"

_PARAMS = f""", params AS (
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT new.trial_id, w.name, w.value, w.distribution
    FROM unnest(%s::int[], %s::text[], %s::float8[], %s::text[])
        WITH ORDINALITY AS w(nth, name, value, distribution, place) {_JOIN}
)"""  # noqa: S608

_ATTRIBUTES = f""", {{kind}}s AS (
    INSERT INTO trial_{{kind}}_attributes (trial_id, key, value_json)
    SELECT new.trial_id, w.key, w.value
    FROM unnest(%s::int[], %s::text[], %s::text[]) WITH ORDINALITY AS w(nth, key, value, place) {_JOIN}
)"""  # noqa: S608

_REPORTS = f""", reports AS (
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT new.trial_id, w.step, CASE WHEN w.value NOT IN ('NaN', 'Infinity', '-Infinity') THEN w.value END,
           (CASE w.value WHEN 'NaN' THEN 'NAN' WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG'
            ELSE 'FINITE' END)::trialintermediatevaluetype
    FROM unnest(%s::int[], %s::int[], %s::float8[]) WITH ORDINALITY AS w(nth, step, value, place) {_JOIN}
)"""  # noqa: S608

_VALUES = f""", final AS (
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT new.trial_id, w.objective, CASE WHEN w.value NOT IN ('Infinity', '-Infinity') THEN w.value END,
           (CASE w.value WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG'
            ELSE 'FINITE' END)::trialvaluetype
    FROM unnest(%s::int[], %s::int[], %s::float8[]) WITH ORDINALITY AS w(nth, objective, value, place) {_JOIN}
)"""  # noqa: S608

_MADE = "SELECT trial_id, number, datetime_start FROM new ORDER BY number"


@dataclass(frozen=True, slots=True)
class Made:
    """A trial that was made."""

    trial_id: int
    number: int
    start: datetime | None
    """Naive local time; the database's clock unless a template said it."""


def make_trials(
    wire: Wire, study_id: int, templates: Sequence[FrozenTrial | None], last: tuple[int, int]
) -> list[Made]:
    """Make trials; without a template, running ones. One round trip.

    `last`: key and number of the last trial known of the study, (0, -1) if there is none, which
    spares counting all before it. Empty if there is no such study. Raises `ValueError` for names and
    steps that Optuna's tables can't hold.
    """
    statements, values = _making(study_id, templates, last)
    answer = wire.run(statements, values)
    if answer.uncertain:
        logger.warning(
            "the connection broke while trials of study %s were made; they may be there twice", study_id
        )
    return [Made(trial_id, number, local_time(start)) for trial_id, number, start in answer.rows]


def enqueue_trials(wire: Wire, templates: Mapping[int, Sequence[FrozenTrial]]) -> None:
    """Make trials in several studies (by key), all or none, in one round trip. Not tried again.

    Raises `StorageError` where nobody can tell whether they were made: look, before another try.
    """
    scripts, values = [], []
    for study_id in sorted(study_id for study_id, wanted in templates.items() if wanted):
        statements, given = _making(study_id, templates[study_id], (0, -1))
        scripts.append(statements)
        values += given
    if scripts:
        wire.run_once(";\n".join(scripts), values)


def _making(
    study_id: int, templates: Sequence[FrozenTrial | None], last: tuple[int, int]
) -> tuple[str, list[Any]]:
    newest, number = last
    statements = [_LOCK, _TRIALS]
    values: list[Any] = [study_id, number, study_id, newest, *_heads(templates), study_id]
    for statement, rows, kinds in (
        (_PARAMS, _params(templates), "ntft"),
        (_ATTRIBUTES.format(kind="user"), _attributes(templates, "user_attrs"), "ntt"),
        (_ATTRIBUTES.format(kind="system"), _attributes(templates, "system_attrs"), "ntt"),
        (_REPORTS, _reports(templates), "nnf"),
        (_VALUES, _values(templates), "nnf"),
    ):
        if rows:
            statements.append(statement)
            for kind, column in zip(kinds, zip(*rows, strict=True), strict=True):
                values.append(list(column) if kind == "t" else numbers(column))
    statements.append(_MADE)
    return "".join(statements), values


def _heads(templates: Sequence[FrozenTrial | None]) -> list[Any]:
    return [
        ["RUNNING" if trial is None else trial.state.name for trial in templates],
        [trial is None for trial in templates],
        [None if trial is None else utc_time(trial.datetime_start) for trial in templates],
        [None if trial is None else utc_time(trial.datetime_complete) for trial in templates],
    ]


def _params(templates: Sequence[FrozenTrial | None]) -> list[tuple[int, str, float, str]]:
    return [
        (
            nth,
            checked_key(name),
            float(trial.distributions[name].to_internal_repr(value)),
            distribution_to_json(trial.distributions[name]),
        )
        for nth, trial in enumerate(templates)
        if trial is not None
        for name, value in trial.params.items()
    ]


def _attributes(templates: Sequence[FrozenTrial | None], kind: str) -> list[tuple[int, str, str]]:
    return [
        (nth, checked_key(key), json.dumps(value))
        for nth, trial in enumerate(templates)
        if trial is not None
        for key, value in getattr(trial, kind).items()
    ]


def _reports(templates: Sequence[FrozenTrial | None]) -> list[tuple[int, int, float]]:
    return [
        (nth, checked_step(step), float(value))
        for nth, trial in enumerate(templates)
        if trial is not None
        for step, value in trial.intermediate_values.items()
    ]


def _values(templates: Sequence[FrozenTrial | None]) -> list[tuple[int, int, float]]:
    return [
        (nth, objective, float(value))
        for nth, trial in enumerate(templates)
        if trial is not None
        for objective, value in enumerate(trial.values or ())
    ]
