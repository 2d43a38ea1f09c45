"""Storing: everything that waits, of any number of trials, as one transaction in one round trip.

The trials' rows are locked first, in the order of their keys, so that nobody finishes a trial between
the check of its state and the commit. Then come parameters, attributes, intermediate values, values,
and the states last: whatever stops the transaction, no finished trial is there without its values.
Every statement touches only trials that are not finished, so one that somebody else finished or deleted
costs the others nothing; the last statement tells which those were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import TrialState

from storage.optuna.queue import Writes
from storage.optuna.values import FINISHED, STATES, local_time
from storage.optuna.wire import Wire
from storage.values import numbers

OPEN = "('RUNNING', 'WAITING')"
NOW = "clock_timestamp() AT TIME ZONE 'UTC'"
"""The database's clock, as Optuna's columns have it."""

_LOCK = "SELECT FROM trials WHERE trial_id = ANY(%s::int[]) ORDER BY trial_id FOR NO KEY UPDATE;"

_FIRST_STAYS = "ON CONFLICT (trial_id, param_name) DO NOTHING"
"""Of parameters. There is hardly ever one, and to look for it is a fifth of what an INSERT costs."""

_PARAMS = f"""
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT trial_id, kinds.name, w.value, kinds.distribution
FROM unnest(%s::int[], %s::int[], %s::float8[]) WITH ORDINALITY AS w(trial_id, kind, value, nth)
JOIN unnest(%s::text[], %s::text[]) WITH ORDINALITY AS kinds(name, distribution, kind) USING (kind)
JOIN trials AS t USING (trial_id)
WHERE t.state IN {OPEN} ORDER BY w.nth
{_FIRST_STAYS};
"""  # noqa: S608 (made of our own constants, here and below)

_ATTRIBUTES = f"""
INSERT INTO trial_{{kind}}_attributes (trial_id, key, value_json)
SELECT trial_id, w.key, w.value
FROM unnest(%s::int[], %s::text[], %s::text[]) WITH ORDINALITY AS w(trial_id, key, value, nth)
JOIN trials AS t USING (trial_id)
WHERE t.state IN {OPEN} ORDER BY w.nth
ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
"""  # noqa: S608

_REPORTS = f"""
INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT trial_id, w.step, CASE WHEN w.value NOT IN ('NaN', 'Infinity', '-Infinity') THEN w.value END,
       (CASE w.value WHEN 'NaN' THEN 'NAN' WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG'
        ELSE 'FINITE' END)::trialintermediatevaluetype
FROM unnest(%s::int[], %s::int[], %s::float8[]) WITH ORDINALITY AS w(trial_id, step, value, nth)
JOIN trials AS t USING (trial_id)
WHERE t.state IN {OPEN} ORDER BY w.nth
ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value,
    intermediate_value_type = excluded.intermediate_value_type;
"""  # noqa: S608

_VALUES = f"""
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT trial_id, w.objective, CASE WHEN w.value NOT IN ('Infinity', '-Infinity') THEN w.value END,
       (CASE w.value WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG'
        ELSE 'FINITE' END)::trialvaluetype
FROM unnest(%s::int[], %s::int[], %s::float8[]) WITH ORDINALITY AS w(trial_id, objective, value, nth)
JOIN trials AS t USING (trial_id)
WHERE t.state IN {OPEN} ORDER BY w.nth
ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type;
"""  # noqa: S608

_STATES = f"""
WITH changed AS (
    UPDATE trials AS t SET
        state = w.state::trialstate,
        datetime_start = CASE WHEN w.state = 'RUNNING' THEN {NOW} ELSE t.datetime_start END,
        datetime_complete = CASE WHEN w.state IN {OPEN} THEN t.datetime_complete ELSE {NOW} END
    FROM unnest(%s::int[], %s::text[]) AS w(trial_id, state)
    WHERE t.trial_id = w.trial_id AND t.state IN {OPEN} AND (w.state <> 'RUNNING' OR t.state = 'WAITING')
    RETURNING t.trial_id, CASE WHEN w.state = 'RUNNING' THEN t.datetime_start ELSE t.datetime_complete END
        AS moment
)
SELECT t.trial_id, t.state::text, changed.trial_id IS NOT NULL, changed.moment
FROM trials AS t LEFT JOIN changed USING (trial_id)
WHERE t.trial_id = ANY(%s::int[])
"""  # noqa: S608
"""Within one statement the outer SELECT sees the states as they were before the UPDATE."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the writes of one trial."""

    before: TrialState | None
    """Its state before; None: it is deleted."""
    changed: bool
    """Whether its state was changed."""
    moment: datetime | None
    """When, naive local time by the database's clock."""
    stored: bool
    """Whether what was to be written besides the state is stored."""


def store(wire: Wire, writes: Writes) -> dict[int, Outcome]:
    """Store writes; what became of each trial's. One round trip.

    Where the connection broke and the writes were sent again, a trial that is found in the state
    that it was to get is taken as stored: the first sending did it. (A WAITING trial that is found
    RUNNING is not: it may be somebody else's.)
    """
    trial_ids = sorted(writes)
    ids = numbers(trial_ids)
    statements = [_LOCK]
    values: list[Any] = [ids]
    for statement, columns in (
        (_PARAMS, _params(writes)),
        (_ATTRIBUTES.format(kind="user"), _attributes(writes, "user_attrs")),
        (_ATTRIBUTES.format(kind="system"), _attributes(writes, "system_attrs")),
        (_REPORTS, _reports(writes)),
        (_VALUES, _values(writes)),
    ):
        if columns is not None:
            statements.append(statement)
            values += columns
    states = [(i, state.name) for i in trial_ids if (state := writes[i].state) is not None]
    statements.append(_STATES)
    values += [numbers(i for i, _ in states), texts(name for _, name in states), ids]
    script = "".join(statements)
    answer = wire.run(script.replace(_FIRST_STAYS, ""), values, otherwise=script)
    found = {row[0]: row[1:] for row in answer.rows}
    return {i: _outcome(found.get(i), writes[i].state, uncertain=answer.uncertain) for i in trial_ids}


def texts(values: Iterable[str]) -> list[str]:
    """An array of texts, which the driver quotes."""
    return list(values)


def _outcome(row: Sequence[Any] | None, wanted: TrialState | None, *, uncertain: bool) -> Outcome:
    if row is None:
        return Outcome(None, changed=False, moment=None, stored=False)
    before, changed, moment = STATES[row[0]], row[1], local_time(row[2])
    if uncertain and wanted in FINISHED and before == wanted:
        return Outcome(TrialState.RUNNING, changed=True, moment=None, stored=True)
    return Outcome(before, changed, moment, stored=before not in FINISHED)


def _params(writes: Writes) -> list[Any] | None:
    # A pool has few parameters: each travels once, and so is its distribution put into words only once.
    kinds: dict[tuple[str, int], tuple[int, str]] = {}
    rows = []
    for trial_id, of_trial in writes.items():
        for name, (value, distribution) in of_trial.params.items():
            key = name, id(distribution)
            if (kind := kinds.get(key)) is None:
                kind = kinds[key] = len(kinds) + 1, distribution_to_json(distribution)
            rows.append((trial_id, kind[0], value))
    if not rows:
        return None
    columns = [numbers(column) for column in zip(*rows, strict=True)]
    return [*columns, texts(name for name, _ in kinds), texts(text for _, text in kinds.values())]


def _attributes(writes: Writes, kind: str) -> list[Any] | None:
    rows = [(i, *entry) for i, of_trial in writes.items() for entry in getattr(of_trial, kind).items()]
    if not rows:
        return None
    ids, keys, values = zip(*rows, strict=True)
    return [numbers(ids), texts(keys), texts(values)]


def _reports(writes: Writes) -> list[Any] | None:
    rows = [(i, *entry) for i, of_trial in writes.items() for entry in of_trial.reports.items()]
    if not rows:
        return None
    return [numbers(column) for column in zip(*rows, strict=True)]


def _values(writes: Writes) -> list[Any] | None:
    rows = [(i, *entry) for i, of_trial in writes.items() for entry in enumerate(of_trial.values or ())]
    if not rows:
        return None
    return [numbers(column) for column in zip(*rows, strict=True)]
