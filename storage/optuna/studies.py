"""Studies and their attributes: each call one round trip."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from storage.optuna.values import checked_key, decoded
from storage.optuna.wire import Wire

Kind = Literal["user", "system"]

_CREATE = """
WITH new AS (
    INSERT INTO studies (study_name) VALUES (%s) ON CONFLICT (study_name) DO NOTHING RETURNING study_id
), directions AS (
    INSERT INTO study_directions (study_id, direction, objective)
    SELECT study_id, d.direction::studydirection, d.nth - 1
    FROM new, unnest(%s::text[]) WITH ORDINALITY AS d(direction, nth)
)
SELECT study_id FROM new
"""

_MAKE = """
INSERT INTO studies (study_name)
SELECT w.name FROM unnest(%(names)s::text[]) WITH ORDINALITY AS w(name, nth)
WHERE NOT EXISTS (SELECT FROM studies WHERE study_name = w.name)
ORDER BY w.nth ON CONFLICT (study_name) DO NOTHING;
INSERT INTO study_directions (study_id, direction, objective)
SELECT study_id, w.direction::studydirection, 0
FROM unnest(%(names)s::text[], %(directions)s::text[]) AS w(name, direction)
JOIN studies ON study_name = w.name
WHERE NOT EXISTS (SELECT FROM study_directions AS d WHERE d.study_id = studies.study_id);
"""
"""A study that is there stays as it is. Each statement sees what those before it, and others, have stored."""

_NOTE = """
INSERT INTO study_{kind}_attributes (study_id, key, value_json)
SELECT study_id, w.key, w.value
FROM unnest(%({kind}_names)s::text[], %({kind}_keys)s::text[], %({kind}_values)s::text[])
    WITH ORDINALITY AS w(name, key, value, nth)
JOIN studies ON study_name = w.name
WHERE NOT EXISTS (
    SELECT FROM study_{kind}_attributes AS a WHERE a.study_id = studies.study_id AND a.key = w.key)
ORDER BY w.nth ON CONFLICT (study_id, key) DO NOTHING;
"""

_FOUND = """
SELECT study_name, study_id, ARRAY(SELECT direction::text FROM study_directions AS d
                                   WHERE d.study_id = s.study_id ORDER BY objective)
FROM studies AS s WHERE study_name = ANY(%(names)s::text[]) ORDER BY study_id
"""

_DELETE = """
SELECT FROM studies WHERE study_id = %(study)s FOR UPDATE;
DELETE FROM trial_params USING trials AS t WHERE trial_params.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trial_values USING trials AS t WHERE trial_values.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trial_intermediate_values AS v USING trials AS t
    WHERE v.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trial_user_attributes AS a USING trials AS t
    WHERE a.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trial_system_attributes AS a USING trials AS t
    WHERE a.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trial_heartbeats AS h USING trials AS t WHERE h.trial_id = t.trial_id AND study_id = %(study)s;
DELETE FROM trials WHERE study_id = %(study)s;
DELETE FROM study_directions WHERE study_id = %(study)s;
DELETE FROM study_user_attributes WHERE study_id = %(study)s;
DELETE FROM study_system_attributes WHERE study_id = %(study)s;
DELETE FROM studies WHERE study_id = %(study)s RETURNING study_id
"""

_SET = """
INSERT INTO study_{kind}_attributes (study_id, key, value_json)
SELECT study_id, %s, %s FROM studies WHERE study_id = %s
ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json
RETURNING study_id
"""

_ATTRIBUTES = """
SELECT key, value_json FROM studies AS s LEFT JOIN study_{kind}_attributes AS a USING (study_id)
WHERE s.study_id = %s ORDER BY study_{kind}_attribute_id
"""

_ALL = """
SELECT 'direction', study_id, direction::text, lpad(objective::text, 10, '0') FROM study_directions
UNION ALL SELECT 'user', study_id, key, value_json FROM study_user_attributes
UNION ALL SELECT 'system', study_id, key, value_json FROM study_system_attributes
UNION ALL SELECT 'study', study_id, study_name, NULL FROM studies
ORDER BY 1, 2, 4
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTemplate:
    """A study with one objective, as it is to be."""

    name: str
    direction: StudyDirection
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]


Key: TypeAlias = tuple[int, list[StudyDirection]]
"""A study's key and its directions."""


def make_studies(wire: Wire, templates: Sequence[StudyTemplate]) -> dict[str, Key]:
    """Make the studies that aren't there, with all that is known of them; what all of them are, by name.

    One round trip, one transaction. Of a study that is there nothing is changed, but attributes that it
    lacks are added.
    """
    values: dict[str, Any] = {
        "names": [checked_key(template.name) for template in templates],
        "directions": [template.direction.name for template in templates],
    }
    for kind in ("user", "system"):
        rows = [
            (template.name, checked_key(key), json.dumps(value))
            for template in templates
            for key, value in getattr(template, f"{kind}_attrs").items()
        ]
        for nth, column in enumerate(("names", "keys", "values")):
            values[f"{kind}_{column}"] = [row[nth] for row in rows]
    script = _MAKE + _NOTE.format(kind="user") + _NOTE.format(kind="system") + _FOUND
    return _keys(wire.run(script, values).rows)


def studies_of_names(wire: Wire, names: Collection[str]) -> dict[str, Key]:
    """What the studies of these names are, of those that are there."""
    return _keys(wire.run(_FOUND, {"names": list(names)}).rows)


def _keys(rows: Sequence[Any]) -> dict[str, Key]:
    return {name: (study_id, [StudyDirection[d] for d in directions]) for name, study_id, directions in rows}


def create_study(wire: Wire, name: str, directions: Sequence[StudyDirection]) -> int | None:
    """Make a study; its key, or None if there is one of that name."""
    rows = wire.run(_CREATE, (name, [direction.name for direction in directions])).rows
    return rows[0][0] if rows else None


def delete_study(wire: Wire, study_id: int) -> bool:
    """Delete a study with all its trials; whether there was one."""
    answer = wire.run(_DELETE, {"study": study_id})
    return bool(answer.rows) or answer.uncertain


def study_of_name(wire: Wire, name: str) -> int | None:
    """The key of the study of that name."""
    rows = wire.run("SELECT study_id FROM studies WHERE study_name = %s", (name,)).rows
    return rows[0][0] if rows else None


def name_and_directions(wire: Wire, study_id: int) -> tuple[str, list[StudyDirection]] | None:
    """What never changes of a study; None if there is no such study."""
    statement = """
    SELECT study_name, ARRAY(SELECT direction::text FROM study_directions AS d
                             WHERE d.study_id = s.study_id ORDER BY objective)
    FROM studies AS s WHERE study_id = %s
    """
    rows = wire.run(statement, (study_id,)).rows
    if not rows:
        return None
    return rows[0][0], [StudyDirection[name] for name in rows[0][1]]


def set_attribute(wire: Wire, study_id: int, kind: Kind, key: str, text: str) -> bool:
    """Set an attribute to JSON; whether there is such a study."""
    return bool(wire.run(_SET.format(kind=kind), (key, text, study_id)).rows)


def attributes(wire: Wire, study_id: int, kind: Kind) -> dict[str, Any] | None:
    """A study's attributes; None if there is no such study."""
    rows = wire.run(_ATTRIBUTES.format(kind=kind), (study_id,)).rows
    if not rows:
        return None
    found = [row for row in rows if row[0] is not None]
    return decoded([key for key, _ in found], [text for _, text in found])


def all_studies(wire: Wire) -> list[FrozenStudy]:
    """All studies with their attributes, by key."""
    names: dict[int, str] = {}
    directions: dict[int, list[StudyDirection]] = defaultdict(list)
    found: dict[str, dict[int, dict[str, str]]] = {"user": defaultdict(dict), "system": defaultdict(dict)}
    for kind, study_id, text, value in wire.run(_ALL).rows:
        if kind == "study":
            names[study_id] = text
        elif kind == "direction":
            directions[study_id].append(StudyDirection[text])
        else:
            found[kind][study_id][text] = value
    return [
        FrozenStudy(
            study_name=names[study_id],
            direction=None,
            directions=directions[study_id],
            user_attrs=decoded(found["user"][study_id].keys(), found["user"][study_id].values()),
            system_attrs=decoded(found["system"][study_id].keys(), found["system"][study_id].values()),
            study_id=study_id,
        )
        for study_id in sorted(names)
    ]
