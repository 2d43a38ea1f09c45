"""Reading trials: one statement for all that some studies have that this process hasn't seen.

A trial that was seen before and is still open is read in part: its state, its attributes, and the
parameters and intermediate values whose rows were added since. If its row in `trials` was changed
meanwhile (every change of state does that), it is read in full. Arrays travel and stay as texts: of ten
thousand trials most are never looked at in detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.optuna.stored import StoredTrial, interned, shape_of, stored_trial
from storage.optuna.values import STATES
from storage.optuna.wire import Wire


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an open trial, so that only the rest need be read."""

    trial_id: int
    version: int
    """Identifies the version of the trial's row: the transaction that wrote it. 0: read all."""
    newest_param: int
    """The largest key of its rows in `trial_params`."""
    newest_report: int
    """The same in `trial_intermediate_values`."""


@dataclass(slots=True)
class Found:
    """A trial as read: in full, or without the parameters and intermediate values that are known of it."""

    trial: StoredTrial
    known: Known
    """Of this reading, for the next one."""
    full: bool


_FLOAT = """coalesce({value}, CASE {value}_type
    WHEN 'INF_POS' THEN 'Infinity'::float8 WHEN 'INF_NEG' THEN '-Infinity' ELSE 'NaN' END)"""

_OBJECT = """
    SELECT '{{' || string_agg(to_json(key::text)::text || ':' || value_json, ','
                            ORDER BY trial_{kind}_attribute_id) || '}}'
    FROM trial_{kind}_attributes AS x WHERE x.trial_id = t.trial_id
"""

_TRIALS = f"""
SELECT %s::int, t.trial_id, t.number, t.state::text, t.datetime_start, t.datetime_complete,
       t.xmin::text::bigint,
       known.version IS NULL OR known.version <> t.xmin::text::bigint,
       params.*, users.*, systems.*, reports.*, final.*
FROM (SELECT FROM studies WHERE study_id = %s) AS study
LEFT JOIN trials AS t ON t.study_id = %s AND (t.trial_id > %s OR t.trial_id = ANY(%s::int[]))
LEFT JOIN unnest(%s::int[], %s::bigint[], %s::int[], %s::int[]) AS known(trial_id, version, param, report)
    ON known.trial_id = t.trial_id AND known.version = t.xmin::text::bigint
LEFT JOIN LATERAL (
    SELECT array_agg(param_name ORDER BY param_id)::text,
           array_agg(distribution_json ORDER BY param_id)::text,
           array_agg(param_value ORDER BY param_id)::text, max(param_id)
    FROM trial_params AS x
    WHERE x.trial_id = t.trial_id AND x.param_id > coalesce(known.param, 0)
) AS params ON true
LEFT JOIN LATERAL ({_OBJECT.format(kind="user")}) AS users ON true
LEFT JOIN LATERAL ({_OBJECT.format(kind="system")}) AS systems ON true
LEFT JOIN LATERAL (
    SELECT array_agg(step)::text, array_agg({_FLOAT.format(value="intermediate_value")})::text,
           max(trial_intermediate_value_id)
    FROM trial_intermediate_values AS x
    WHERE x.trial_id = t.trial_id AND x.trial_intermediate_value_id > coalesce(known.report, 0)
) AS reports ON true
LEFT JOIN LATERAL (
    SELECT array_agg({_FLOAT.format(value="value")} ORDER BY objective)::text
    FROM trial_values AS x WHERE x.trial_id = t.trial_id
) AS final ON true
"""  # noqa: S608 (made of our own constants)

_BY_KEY = "\nORDER BY 1, 2"
_TOGETHER = 50
"""Studies in one statement, each of which the server plans anew."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a study."""

    study_id: int
    after: int
    """Trials with a larger key …"""
    known: Sequence[Known]
    """… and those of these that still exist."""


def read_trials(wire: Wire, asks: Sequence[Ask]) -> dict[int, list[Found]]:
    """The trials that are asked for, by study and key; nothing of a study that isn't there.

    One round trip, or one for every `_TOGETHER` studies.
    """
    found: dict[int, list[Found]] = {}
    before = {one.trial_id: one for ask in asks for one in ask.known}
    for part in batched(asks, _TOGETHER):
        statement = "\nUNION ALL\n".join([_TRIALS] * len(part)) + _BY_KEY
        values = [value for ask in part for value in _values(ask)]
        for study_id, *row in wire.run(statement, values).rows:
            of_study = found.setdefault(study_id, [])
            if row[0] is not None:
                of_study.append(_found(row, before.get(row[0])))
    return found


def _values(ask: Ask) -> list[Any]:
    columns = [
        _array([one.trial_id for one in ask.known]),
        _array([one.version for one in ask.known]),
        _array([one.newest_param for one in ask.known]),
        _array([one.newest_report for one in ask.known]),
    ]
    return [ask.study_id, ask.study_id, ask.study_id, ask.after, columns[0], *columns]


def batched(asks: Sequence[Ask], size: int) -> list[Sequence[Ask]]:
    """The same in parts of at most `size`."""
    return [asks[first : first + size] for first in range(0, len(asks), size)]


def study_of_trial(wire: Wire, trial_id: int) -> int | None:
    """The study that has a trial; None if there is no such trial."""
    rows = wire.run("SELECT study_id FROM trials WHERE trial_id = %s", (trial_id,)).rows
    return rows[0][0] if rows else None


def trial_of_number(wire: Wire, study_id: int, number: int) -> int | None:
    """The key of a study's trial with that number."""
    statement = "SELECT trial_id FROM trials WHERE study_id = %s AND number = %s ORDER BY trial_id"
    rows = wire.run(statement, (study_id, number)).rows
    return rows[0][0] if rows else None


def _found(row: Sequence[Any], before: Known | None) -> Found:
    (
        trial_id, number, state, start, complete, version, full,
        names, distributions, internal, newest_param,
        user_attrs, system_attrs, steps, reported, newest_report, values,
    ) = row  # fmt: skip
    if full or before is None:
        newest_param, newest_report = newest_param or 0, newest_report or 0
    else:
        newest_param = newest_param or before.newest_param
        newest_report = newest_report or before.newest_report
    trial = stored_trial(
        trial_id,
        number,
        STATES[state],
        shape_of(names, distributions),
        (start, complete, internal, user_attrs, system_attrs, interned(steps), reported, values),
    )
    return Found(trial, Known(trial_id, version, newest_param, newest_report), full)


def _array(numbers: Sequence[int]) -> str:
    """A Postgres array literal: the driver's own takes many times as long to make."""
    return "{" + ",".join(map(str, numbers)) + "}"
