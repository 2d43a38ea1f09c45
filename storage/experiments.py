"""Experiments and their studies: what was asked for, and how far it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

from storage import crowds
from storage import lazily as sql
from storage.control import Control, control_key
from storage.database import Database, lock_number
from storage.errors import ExperimentExists, ExperimentNotFound, ValueRefused
from storage.records import ExperimentRecord, ExperimentState, StudyRecord, StudyRole
from storage.sqlstates import constraint_of
from storage.values import json_text, storable

if TYPE_CHECKING:
    from sqlalchemy import Connection

COLUMNS = "id, name, spec, space_hash, state, stop_requested, created_at, updated_at, environment"

CREATE = f"""
INSERT INTO shoal.experiments (name, spec, space_hash, environment)
VALUES (:name, CAST(:spec AS json), :space_hash, CAST(:environment AS json))
ON CONFLICT (name) DO NOTHING
RETURNING {COLUMNS}
"""  # noqa: S608 (here and below: only our own constants are put in)

ADD_STUDIES = """
INSERT INTO shoal.experiment_studies (experiment_id, method, replicate, name, role)
SELECT :experiment_id, said.method, said.replicate, said.name, :role
FROM unnest(CAST(:methods AS text[]), CAST(:replicates AS int[]), CAST(:names AS text[]))
    WITH ORDINALITY AS said(method, replicate, name, place)
ORDER BY said.place
ON CONFLICT (experiment_id, method, replicate, role) DO NOTHING
"""

GROW = f"""
UPDATE shoal.experiments SET spec = CAST(:spec AS json), updated_at = now() WHERE id = :id RETURNING {COLUMNS}
"""  # noqa: S608

SET_STATE = "UPDATE shoal.experiments SET state = :state, updated_at = now() WHERE id = :id"

HELD = """
SELECT (CAST(classid AS bigint) << 32) | CAST(objid AS bigint)
FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""The numbers of the advisory locks that are held in this database; Postgres shows each in two halves."""

BEGIN = (
    "UPDATE shoal.experiments SET state = 'running', updated_at = now() WHERE id = :id AND state = 'created'"
)

REQUEST_STOP = "UPDATE shoal.experiments SET stop_requested = :flag, updated_at = now() WHERE id = :id"

Studies = Sequence[tuple[str, int, str]]
"""Method, replicate and the Optuna study's name, for each study."""


class Experiments:
    """Reads and writes experiments. May be shared by threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self,
        name: str,
        spec: Mapping[str, Any],
        space_hash: str,
        environment: Mapping[str, Any],
        studies: Studies,
    ) -> ExperimentRecord:
        """Store a new experiment together with its studies: all or nothing.

        Raises `ExperimentExists` with the existing record, also for one of two that create it at
        the same time, and `ValueRefused` for values or study names that can't be stored.
        """
        if storable(name) != name:
            raise ValueRefused(f"the experiment name {name!r} holds characters that can't be stored")
        values = {
            "name": name,
            "spec": json_text(dict(spec)),
            "space_hash": space_hash,
            "environment": json_text(dict(environment)),
        }
        with self.database.begin() as connection:
            row = connection.execute(sql.text(CREATE), values).mappings().one_or_none()
            if row is not None:
                created = ExperimentRecord(**row)
                _add_studies(connection, created.id, studies)
                return created
        # The one who was quicker has committed by now: the INSERT waited for that.
        raise ExperimentExists(f"the experiment {name!r} exists", existing=self.get(name))

    def grow(self, experiment_id: int, spec: Mapping[str, Any], studies: Studies) -> ExperimentRecord:
        """Store a new version of the spec and the studies that it adds; existing studies stay.

        Raises `ExperimentNotFound`, `ValueRefused`.
        """
        with self.database.begin() as connection:
            values = {"id": experiment_id, "spec": json_text(dict(spec))}
            row = connection.execute(sql.text(GROW), values).mappings().one_or_none()
            if row is None:
                raise ExperimentNotFound(f"there is no experiment with id {experiment_id}")
            _add_studies(connection, experiment_id, studies)
            return ExperimentRecord(**row)

    def get(self, name: str) -> ExperimentRecord:
        """The experiment of that name. Raises `ExperimentNotFound`, naming similar ones."""
        statement = f"SELECT {COLUMNS} FROM shoal.experiments WHERE name = :name"  # noqa: S608
        found = self.database.rows(statement, {"name": storable(name)})
        if found:
            return ExperimentRecord(**found[0]._asdict())
        names = self.database.rows("SELECT name FROM shoal.experiments ORDER BY id DESC LIMIT 1000")
        near = tuple(difflib.get_close_matches(name, [row[0] for row in names], n=3))
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ExperimentNotFound(f"there is no experiment {name!r}{hint}", near)

    def list(self) -> list[ExperimentRecord]:
        """All experiments, oldest first."""
        statement = f"SELECT {COLUMNS} FROM shoal.experiments ORDER BY id"  # noqa: S608
        return [ExperimentRecord(**row._asdict()) for row in self.database.rows(statement)]

    def studies(self, experiment_id: int, *, role: StudyRole | None = "search") -> Sequence[StudyRecord]:
        """The studies of an experiment, in the order in which they were given; None: of every role."""
        statement = (
            "SELECT id, experiment_id, method, replicate, name, role FROM shoal.experiment_studies "
            "WHERE experiment_id = :id AND (CAST(:role AS text) IS NULL OR role = :role) ORDER BY id"
        )
        with self.database.begin() as connection:
            rows = connection.execute(sql.text(statement), {"id": experiment_id, "role": role}).mappings()
            return [StudyRecord(**row) for row in rows]

    def add_study(
        self, experiment_id: int, method: str, replicate: int, name: str, *, role: StudyRole
    ) -> None:
        """Note a study that came up while the experiment ran; one that is there stays as it is.

        Raises `ValueRefused` for a name that another study has.
        """
        with self.database.begin() as connection:
            _add_studies(connection, experiment_id, [(method, replicate, name)], role)

    def set_state(self, experiment_id: int, state: ExperimentState) -> None:
        """Store how far it is. Raises `ExperimentNotFound`; `ValueRefused` for an unknown state."""
        self._update(SET_STATE, id=experiment_id, state=state)

    def begin(self, experiment_id: int) -> None:
        """Store that one which was created is running; any other state stays."""
        with self.database.begin() as connection:
            connection.execute(sql.text(BEGIN), {"id": experiment_id})

    def request_stop(self, experiment_id: int, flag: bool = True) -> None:
        """Ask the controller to stop, or take that back. Raises `ExperimentNotFound`."""
        self._update(REQUEST_STOP, id=experiment_id, flag=flag)

    def stop_requested(self, experiment_id: int) -> bool:
        """Whether somebody asked it to stop. Raises `ExperimentNotFound`."""
        statement = "SELECT stop_requested FROM shoal.experiments WHERE id = :id"
        with self.database.begin() as connection:
            flag = connection.scalar(sql.text(statement), {"id": experiment_id})
        if flag is None:
            raise ExperimentNotFound(f"there is no experiment with id {experiment_id}")
        return bool(flag)

    def pulse(self, experiment_id: int, *, waits: bool = True) -> tuple[bool, datetime]:
        """Whether somebody asked it to stop, and when its record changed. Raises `ExperimentNotFound`.

        Unless it `waits`, it raises `DatabaseFull` at once on a server that has no connection left for it.
        """
        statement = "SELECT stop_requested, updated_at FROM shoal.experiments WHERE id = %(id)s"
        values = {"id": experiment_id}
        with nullcontext() if waits else crowds.in_line(None):
            # One message: all workers ask several times a second.
            rows = self.database.retrying(lambda _unsure: self.database.script(statement, values))
        if not rows:
            raise ExperimentNotFound(f"there is no experiment with id {experiment_id}")
        return bool(rows[0][0]), rows[0][1]

    @contextmanager
    def control(self, experiment: ExperimentRecord) -> Iterator[Control]:
        """Be the experiment's only controller until the block or the process ends.

        Who stays longer calls `keep` now and then, for a restart of the server frees the lock.
        Raises `ExperimentBusy` at once if somebody else is.
        """
        control = Control(self.database, experiment.id, experiment.name)
        control.take()
        try:
            yield control
        finally:
            control.give_back()

    def controlled(self, experiment_ids: Iterable[int]) -> frozenset[int]:
        """Which of the experiments a living process controls now; takes no lock itself.

        A state that was read before may be newer or older than this: a controller takes the lock
        before it says that it runs, and gives it back after it has said how that ended.
        """
        held = frozenset(number for (number,) in self.database.rows(HELD))
        return frozenset(number for number in experiment_ids if lock_number(control_key(number)) in held)

    def changed_within(self, seconds: float, experiment_ids: Iterable[int]) -> bool:
        """Whether one of the experiments was made or written so many seconds ago at most."""
        statement = """
        SELECT EXISTS (SELECT FROM shoal.experiments WHERE id = ANY(:ids)
                       AND updated_at > clock_timestamp() - make_interval(secs => :seconds))
        """
        values = {"ids": list(experiment_ids), "seconds": seconds}
        return bool(self.database.rows(statement, values)[0][0])

    def _update(self, statement: str, **values: Any) -> None:
        with self.database.begin() as connection:
            found = connection.execute(sql.text(statement), values).rowcount
        if not found:
            raise ExperimentNotFound(f"there is no experiment with id {values['id']}")


def _add_studies(
    connection: Connection, experiment_id: int, studies: Studies, role: StudyRole = "search"
) -> None:
    """All in one statement."""
    values = {
        "experiment_id": experiment_id,
        "role": role,
        "methods": [method for method, _, _ in studies],
        "replicates": [replicate for _, replicate, _ in studies],
        "names": [name for _, _, name in studies],
    }
    try:
        connection.execute(sql.text(ADD_STUDIES), values)
    except sql.IntegrityError as error:
        if constraint_of(error) != "experiment_studies_name_unique":
            raise
        detail = getattr(getattr(error.orig, "diag", None), "message_detail", None)
        message = f"a study name is already taken by another study: {detail}"
    else:
        return
    raise ValueRefused(message)
