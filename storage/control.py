"""One controller per experiment: a lock in the database, taken again when its connection broke.

Postgres frees a session's lock when the session ends, and sessions end when the server is restarted.
So whoever holds one looks after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from storage import lazily as sql
from storage.database import Database, lock_number
from storage.errors import DatabaseUnreachable, ExperimentBusy

if TYPE_CHECKING:
    from sqlalchemy import Connection

STRANDED_SECONDS = 90.0
"""For so long a server may take the lock for held by a connection of ours that broke on the way (its
keepalives end after 60 s); who holds it after that is somebody else."""


def control_key(experiment_id: int) -> str:
    """The key of the lock that an experiment's controller holds."""
    return f"experiment:{experiment_id}"


class Control:
    """The right to run an experiment. One thread."""

    def __init__(
        self, database: Database, experiment_id: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._name = name
        self._key = {"key": lock_number(control_key(experiment_id))}
        self._clock = clock
        self._connection: Connection | None = None
        self._lost_at: float | None = None

    def take(self) -> None:
        """Take the lock. Raises `ExperimentBusy` if somebody else has it, `DatabaseUnreachable`."""
        if not self._try():
            raise self._busy()

    def keep(self) -> None:
        """See that the lock is held, and take it again if its connection broke.

        Raises `ExperimentBusy` if somebody else has it now, and `DatabaseUnreachable`: then it is to
        be called again.
        """
        if self._connection is not None:
            try:
                self._connection.execute(sql.text("SELECT 1"))
            except sql.DBAPIError:
                self.give_back()
                self._lost_at = self._clock()
            else:
                return
        if self._try():
            self._lost_at = None
        elif self._lost_at is not None and self._clock() - self._lost_at > STRANDED_SECONDS:
            raise self._busy()

    def give_back(self) -> None:
        """Close the connection, and with it the lock."""
        if self._connection is not None:
            with suppress(sql.SQLAlchemyError):  # it may be broken already
                self._connection.execute(sql.text("SELECT pg_advisory_unlock(:key)"), self._key)
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _try(self) -> bool:
        connection = self._database.open_own_connection()
        try:
            held = bool(connection.scalar(sql.text("SELECT pg_try_advisory_lock(:key)"), self._key))
        except sql.DBAPIError:
            connection.invalidate()
            connection.close()
            message = f"the connection to {self._database.masked_url} broke"
            raise DatabaseUnreachable(message, retryable=True) from None
        if held:
            self._connection = connection
        else:
            connection.close()
        return held

    def _busy(self) -> ExperimentBusy:
        return ExperimentBusy(
            f"the experiment {self._name!r} is being run by another process: wait for it, "
            f"or `shoal stop {self._name}`"
        )
