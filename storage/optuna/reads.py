"""Reading trials: one statement for all that some studies have that this process hasn't seen.

A trial that was seen before and is still open is read in part: its state, its attributes, and the
parameters and intermediate values whose rows were added since. If its row in `trials` was changed
meanwhile (every change of state does that), it is read in full. Arrays travel and stay as texts: of ten
thousand trials most are never looked at in detail.

Thousands may wait, at a rung or for their turn. For whom the rows in `trials` are enough, they are asked for
by the versions of these: the server compares those, and tells only of trials that it has in another one.
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What is new in a study."""

    found: list[Found]
    gone: list[int]
    """Keys of known trials that were deleted."""


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

_CHANGED = """
WITH changed AS MATERIALIZED (
    SELECT quiet.trial_id, t.trial_id IS NULL AS gone
    FROM unnest(%s::int[], %s::xid[]) AS quiet(trial_id, version) LEFT JOIN trials AS t USING (trial_id)
    WHERE t.xmin IS DISTINCT FROM quiet.version
)
"""
"""Of trials that are known by their rows alone those whose rows are others now, or gone."""


def _statement(changed: str, gone: str, more: str) -> str:
    """Of one study: the trials after a key, those of an array and `more`; `gone`: which were deleted."""
    return f"""({changed}
SELECT %s::int, study.gone, t.trial_id, t.number, t.state::text, t.datetime_start, t.datetime_complete,
       t.xmin::text::bigint,
       known.version IS NULL OR known.version <> t.xmin::text::bigint,
       params.*, users.*, systems.*, reports.*, final.*
FROM (SELECT {gone} AS gone FROM studies WHERE study_id = %s) AS study
LEFT JOIN trials AS t ON t.study_id = %s AND (t.trial_id > %s OR t.trial_id = ANY(%s::int[] {more}))
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
)"""  # noqa: S608 (made of our own constants)


_ALL_KNOWN = _statement("", "NULL::int[]", "")
_BY_ROWS = _statement(
    _CHANGED, "ARRAY(SELECT trial_id FROM changed WHERE gone)", "|| ARRAY(SELECT trial_id FROM changed)"
)

_BY_KEY = "\nORDER BY 1, 3"
_TOGETHER = 50
"""Studies in one statement, each of which the server plans anew."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is wanted of a study."""

    study_id: int
    after: int
    """Trials with a larger key …"""
    known: Sequence[Known]
    """… those of these that still exist …"""
    quiet: Sequence[Known] = ()
    """… and those of these whose own rows are others than in that version."""


def read_trials(wire: Wire, asks: Sequence[Ask]) -> dict[int, Reading]:
    """The trials that are asked for, by study and key; nothing of a study that isn't there.

    One round trip, or one for every `_TOGETHER` studies.
    """
    readings: dict[int, Reading] = {}
    before = {one.trial_id: one for ask in asks for one in ask.known}
    for part in batched(asks, _TOGETHER):
        statement = "\nUNION ALL\n".join(_BY_ROWS if ask.quiet else _ALL_KNOWN for ask in part) + _BY_KEY
        values = [value for ask in part for value in _values(ask)]
        for study_id, gone, *row in wire.run(statement, values).rows:
            reading = readings.get(study_id)
            if reading is None:
                reading = readings[study_id] = Reading([], list(gone or ()))
            if row[0] is not None:
                reading.found.append(_found(row, before.get(row[0])))
    for ask in asks:
        if (reading := readings.get(ask.study_id)) is not None:
            there = {one.known.trial_id for one in reading.found}
            reading.gone.extend(one.trial_id for one in ask.known if one.trial_id not in there)
    return readings


def _values(ask: Ask) -> list[Any]:
    quiet = []
    if ask.quiet:
        quiet = [_array([one.trial_id for one in ask.quiet]), _array([one.version for one in ask.quiet])]
    columns = [
        _array([one.trial_id for one in ask.known]),
        _array([one.version for one in ask.known]),
        _array([one.newest_param for one in ask.known]),
        _array([one.newest_report for one in ask.known]),
    ]
    return [*quiet, ask.study_id, ask.study_id, ask.study_id, ask.after, columns[0], *columns]


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
