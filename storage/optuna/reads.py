"""Reading trials: one statement for all that some studies have that this process hasn't seen.

A trial that was seen before and is still open is read in part: its state, its attributes, and the
parameters and intermediate values whose rows were added since. If its row in `trials` was changed
meanwhile (every change of state does that), it is read in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from storage.optuna.values import STATES, StoredTrial, decoded, distribution_of, local_time
from storage.optuna.wire import Wire

Attributes: TypeAlias = tuple[list[str] | None, list[str] | None, list[str] | None, list[str] | None]
"""As read: names and JSON of the user's attributes, then of Optuna's."""


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
    """A trial as read, in full or the part that is new."""

    trial_id: int
    number: int
    state: TrialState
    start: datetime | None
    complete: datetime | None
    known: Known
    """Of this reading, for the next one."""
    full: bool
    params: dict[str, float]
    """In Optuna's internal representation."""
    distributions: dict[str, BaseDistribution]
    reports: dict[int, float]
    values: list[float] | None
    attributes: Attributes

    def trial(self) -> FrozenTrial:
        """The trial, if it was read in full."""
        user_keys, user_texts, system_keys, system_texts = self.attributes
        return StoredTrial(
            number=self.number,
            state=self.state,
            value=None,
            values=self.values,
            datetime_start=local_time(self.start),
            datetime_complete=local_time(self.complete),
            params=external(self.params, self.distributions),
            distributions=self.distributions,
            user_attrs=decoded(user_keys, user_texts),
            system_attrs=decoded(system_keys, system_texts),
            intermediate_values=self.reports,
            trial_id=self.trial_id,
        )


_FLOAT = """coalesce({value}, CASE {value}_type
    WHEN 'INF_POS' THEN 'Infinity'::float8 WHEN 'INF_NEG' THEN '-Infinity' ELSE 'NaN' END)"""

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
    SELECT array_agg(param_name::text ORDER BY param_id), array_agg(param_value ORDER BY param_id),
           array_agg(distribution_json ORDER BY param_id), max(param_id)
    FROM trial_params AS x
    WHERE x.trial_id = t.trial_id AND x.param_id > coalesce(known.param, 0)
) AS params ON true
LEFT JOIN LATERAL (
    SELECT array_agg(key::text ORDER BY trial_user_attribute_id),
           array_agg(value_json ORDER BY trial_user_attribute_id)
    FROM trial_user_attributes AS x WHERE x.trial_id = t.trial_id
) AS users ON true
LEFT JOIN LATERAL (
    SELECT array_agg(key::text ORDER BY trial_system_attribute_id),
           array_agg(value_json ORDER BY trial_system_attribute_id)
    FROM trial_system_attributes AS x WHERE x.trial_id = t.trial_id
) AS systems ON true
LEFT JOIN LATERAL (
    SELECT array_agg(step), array_agg({_FLOAT.format(value="intermediate_value")}),
           max(trial_intermediate_value_id)
    FROM trial_intermediate_values AS x
    WHERE x.trial_id = t.trial_id AND x.trial_intermediate_value_id > coalesce(known.report, 0)
) AS reports ON true
LEFT JOIN LATERAL (
    SELECT array_agg({_FLOAT.format(value="value")} ORDER BY objective)
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
                of_study.append(_found(tuple(row), before.get(row[0])))
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


def external(params: dict[str, float], distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Parameters as users see them."""
    return {name: distributions[name].to_external_repr(value) for name, value in params.items()}


def _found(row: tuple[Any, ...], before: Known | None) -> Found:
    (
        trial_id, number, state, start, complete, version, full,
        names, internal, distributions, newest_param,
        user_keys, user_texts, system_keys, system_texts,
        steps, reported, newest_report, values,
    ) = row  # fmt: skip
    if full or before is None:
        before = Known(trial_id, 0, 0, 0)
    names = names or []
    return Found(
        trial_id=trial_id,
        number=number,
        state=STATES[state],
        start=start,
        complete=complete,
        known=Known(
            trial_id, version, newest_param or before.newest_param, newest_report or before.newest_report
        ),
        full=full,
        params=dict(zip(names, internal or (), strict=True)),
        distributions=dict(zip(names, map(distribution_of, distributions or ()), strict=True)),
        reports=dict(zip(steps or (), reported or (), strict=True)),
        values=values,
        attributes=(user_keys, user_texts, system_keys, system_texts),
    )


def _array(numbers: Sequence[int]) -> str:
    """A Postgres array literal: the driver's own takes many times as long to make."""
    return "{" + ",".join(map(str, numbers)) + "}"
