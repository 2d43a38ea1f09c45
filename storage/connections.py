"""Connections to Postgres: how each one is set up, and pools that keep none for longer than it is used.

Two hundred workers share a server that allows forty connections, so a connection that lies idle is
given back within seconds, and one that is in use now and then does not stay for ever either: who
waits for a place would never get one. Once the server has said that it is full, no pool keeps any: all
pools of a process share what it gets (`storage.crowds`). One thread per process looks after what lies
idle, and only while there is something to close.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, Pool

from storage.crowds import SPARE_SECONDS, Line, Place
from storage.sessions import CONNECTION, SESSION, STATEMENT_LIMITS

IDLE_SECONDS = 2.0
"""A connection that nobody used for this long is closed."""
LIFE_SECONDS = 5.0
"""A connection that is older is closed when it comes back, so that others get a place."""
POOL_SIZE = 4
"""Connections of one pool at most; who wants a fifth waits."""
POOL_WAIT = 30.0
"""Seconds for which somebody waits for a connection of a full pool."""

READ_COMMITTED = """;
SELECT set_config('default_transaction_isolation', 'read committed', false),
       (SELECT sum(pg_stat_get_db_numbackends(oid)) FROM pg_database) * 1.1
       >= current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
"""
"""For all that pools lend: the driver may not set it itself, for where a connection that commits every
statement becomes one that does not, the driver puts the server's own default in its place. And whether the
server is nearly full: who is never refused learns it so, and takes turns with those who are."""


def engine_settings(
    application_name: str, line: Line | None = None, *, pooled: bool = True
) -> dict[str, Any]:
    """Arguments for `create_engine`, the same for our tables and for Optuna's.

    A small pool, for there are many processes; a ping before use, so that a restart of the server
    costs nobody an error; READ COMMITTED, for under REPEATABLE READ Optuna doubles trial numbers.
    Without a pool a connection may wait for a lock as long as it likes: it is there for that. `line`
    is where to wait if the server is full; None: apart from everybody else.
    """
    settings: dict[str, Any] = {
        "use_native_hstore": False,  # it would be asked for on every new connection
        "connect_args": CONNECTION | {"application_name": application_name},
        "line": line,
    }
    if pooled:
        start = SESSION.format(**STATEMENT_LIMITS) + READ_COMMITTED
        settings |= {"poolclass": BriefPool, "pool_size": POOL_SIZE, "pool_pre_ping": True}
    else:
        start = SESSION.format(statement=0, lock=0)
        settings |= {"poolclass": OwnPool, "isolation_level": "READ COMMITTED"}
    return settings | {"pool_events": [(_starter(start, line), "connect")]}


def _starter(statement: str, line: Line | None) -> Any:
    def start_session(connection: Any, record: Any) -> None:
        """Runs on every connection of the driver that is new to a pool; one round trip, no transaction."""
        if not record.info["place"].spare:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                nearly_full = cursor.fetchone()[-1] is True
            if nearly_full and line is not None:
                line.squeezed_in()
        connection.autocommit = False

    return start_session


class OwnPool(NullPool):
    """No pool: connections for one use each. They wait in line like those of a pool."""

    def __init__(self, creator: Any, line: Line | None = None, **options: Any) -> None:
        super().__init__(creator, **options)
        self._line = line if line is not None else Line()
        connect = self._invoke_creator

        def take_place(rec: Any) -> Any:
            place = rec.info["place"] = self._line.connect(lambda: connect(rec), spares=False)
            return place.connection

        self._invoke_creator = take_place


class BriefPool(Pool):
    """A pool that lends the connection used last, and closes what lay idle for `IDLE_SECONDS`.

    Once the server is full, whatever comes back goes to the process' line for this server instead.
    """

    def __init__(
        self, creator: Any, pool_size: int = POOL_SIZE, line: Line | None = None, **options: Any
    ) -> None:
        super().__init__(creator, **options)
        self._size = pool_size
        self._places = threading.BoundedSemaphore(pool_size)
        self._guard = threading.Lock()
        self._idle: list[tuple[float, Any]] = []
        self._line = line if line is not None else Line()
        self._line.pools.add(self)
        self._connect = self._invoke_creator
        self._invoke_creator = self._take_place

    def checkedin(self) -> int:
        """How many connections lie idle."""
        return len(self._idle)

    def close_idle(self, seconds: float | None = None) -> bool:
        """Close the connections that have lain idle for so long; whether any are left."""
        limit = time.monotonic() - (IDLE_SECONDS if seconds is None else seconds)
        with self._guard:
            old = [record for since, record in self._idle if since <= limit]
            self._idle = [entry for entry in self._idle if entry[0] > limit]
            left = bool(self._idle)
        for record in old:
            record.close()
        return left

    def hand_in(self) -> None:
        """The server is full: leave all that lies idle to whoever in this process wants it."""
        with self._guard:
            idle, self._idle = self._idle, []
        for _, record in idle:
            self._give(record)

    def status(self) -> str:
        """For SQLAlchemy's log."""
        return f"{type(self).__name__} size {self._size}, idle {self.checkedin()}"

    def recreate(self) -> BriefPool:
        """A new pool with the same settings."""
        return type(self)(
            self._creator,
            pool_size=self._size,
            line=self._line,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close all idle connections."""
        self.close_idle(0.0)
        self._line.close_idle(0.0)

    def _do_get(self) -> Any:
        if not self._places.acquire(timeout=POOL_WAIT):
            raise PoolTimeout(f"no connection became free within {POOL_WAIT:g} s")
        with self._guard:
            if self._idle:
                return self._idle.pop()[1]
        try:
            return self._create_connection()
        except BaseException:
            self._places.release()
            raise

    def _take_place(self, rec: Any) -> Any:
        while True:
            place: Place = self._line.connect(lambda: self._connect(rec))
            if not (place.spare and self._pre_ping) or self._answers(place.connection):
                rec.info["place"] = place
                return place.connection
            place.connection.close()

    def _answers(self, connection: Any) -> bool:
        dialect: Any = self._dialect
        try:
            return bool(dialect.do_ping(connection))
        except dialect.loaded_dbapi.Error:
            return False

    def _do_return_conn(self, record: Any) -> None:
        if self._line.crowded:
            self._give(record)
        elif record.dbapi_connection is not None and self._is_old(record):
            record.close()
        else:
            with self._guard:
                self._idle.append((time.monotonic(), record))
            _reaper.watch(self, IDLE_SECONDS)
        self._places.release()

    def _is_old(self, record: Any) -> bool:
        return bool(time.monotonic() - record.info["place"].since >= LIFE_SECONDS)

    def _give(self, record: Any) -> None:
        """Leave a connection to the line; one that has been ours for long, or is broken, is closed."""
        connection = record.dbapi_connection
        if connection is None:
            return
        if connection.closed or not self._line.give(record.info["place"]):
            record.close()
            return
        record.dbapi_connection = None  # as SQLAlchemy itself detaches one
        _reaper.watch(self._line, SPARE_SECONDS)


class Keeper(Protocol):
    """What holds idle connections."""

    def checkedin(self) -> int:
        """How many."""

    def close_idle(self) -> bool:
        """Close those that have been idle for long enough; whether any are left."""


class _Reaper:
    """The thread that closes idle connections; it ends when there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._keepers: dict[Keeper, float] = {}
        self._thread: threading.Thread | None = None

    def watch(self, keeper: Keeper, seconds: float) -> None:
        """Look after a keeper that has an idle connection: it may lie for so many seconds."""
        with self._changed:
            alive = self._thread is not None and self._thread.is_alive()
            if alive and self._keepers.get(keeper) == seconds:
                return
            self._keepers[keeper] = seconds
            if alive:
                self._changed.notify()
                return
            self._thread = threading.Thread(target=self._run, name="shoal idle connections", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(min(self._keepers.values()) / 2)
                keepers = list(self._keepers)
            done = [keeper for keeper in keepers if not keeper.close_idle()]
            with self._changed:
                # A connection may have come back meanwhile; then its keeper stays.
                for keeper in done:
                    if not keeper.checkedin():
                        del self._keepers[keeper]
                if not self._keepers:
                    self._thread = None
                    return


_reaper = _Reaper()
