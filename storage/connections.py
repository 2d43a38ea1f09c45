"""Connections to Postgres: how each one is set up, and pools that keep none for longer than it is used.

Two hundred workers share a server that allows forty connections, so a connection that lies idle is
given back within seconds, and one that is in use now and then does not stay for ever either: who
waits for a place would never get one. Once the server has said that it is full, nothing is kept at
all for a while. One thread per process looks after all pools, and only while there is something to
close.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any
from weakref import WeakSet

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, Pool

from storage.sessions import CONNECTION, SESSION, STATEMENT_LIMITS
from storage.urls import FULL

IDLE_SECONDS = 2.0
"""A connection that nobody used for this long is closed."""
LIFE_SECONDS = 5.0
"""A connection that is older is closed when it comes back, so that others get a place."""
CROWDED_SECONDS = 30.0
"""For so long after the server was full, connections are closed as soon as they come back."""
POOL_SIZE = 4
"""Connections of one pool at most; who wants a fifth waits."""
POOL_WAIT = 30.0
"""Seconds for which somebody waits for a connection of a full pool."""

READ_COMMITTED = "; SELECT set_config('default_transaction_isolation', 'read committed', false)"
"""For pools whose every execution is a transaction: SQLAlchemy's isolation level is not for those."""


def engine_settings(application_name: str, *, pooled: bool = True) -> dict[str, Any]:
    """Arguments for `create_engine`, the same for our tables and for Optuna's.

    A small pool, for there are many processes; a ping before use, so that a restart of the server
    costs nobody an error; READ COMMITTED, for under REPEATABLE READ Optuna doubles trial numbers.
    Without a pool a connection may wait for a lock as long as it likes: it is there for that.
    """
    start = SESSION.format(statement=0, lock=0)
    if pooled:
        start = SESSION.format(**STATEMENT_LIMITS) + READ_COMMITTED
    settings: dict[str, Any] = {
        "isolation_level": "READ COMMITTED",
        "use_native_hstore": False,  # it would be asked for on every new connection
        "pool_events": [(_starter(start), "connect")],
        "connect_args": CONNECTION | {"application_name": application_name},
    }
    if pooled:
        return settings | {"poolclass": BriefPool, "pool_size": POOL_SIZE, "pool_pre_ping": True}
    return settings | {"poolclass": NullPool}


def _starter(statement: str) -> Any:
    def start_session(connection: Any, _record: Any) -> None:
        """Runs on every new connection of the driver; one round trip, without a transaction."""
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
        connection.autocommit = False

    return start_session


class BriefPool(Pool):
    """A pool that lends the connection used last, and closes what lay idle for `IDLE_SECONDS`."""

    def __init__(self, creator: Any, pool_size: int = POOL_SIZE, **options: Any) -> None:
        super().__init__(creator, **options)
        self._size = pool_size
        self._places = threading.BoundedSemaphore(pool_size)
        self._guard = threading.Lock()
        self._idle: list[tuple[float, Any]] = []

    def checkedin(self) -> int:
        """How many connections lie idle."""
        return len(self._idle)

    def close_idle(self, seconds: float = IDLE_SECONDS) -> bool:
        """Close the connections that have lain idle for so long; whether any are left."""
        limit = time.monotonic() - seconds
        with self._guard:
            old = [record for since, record in self._idle if since <= limit]
            self._idle = [entry for entry in self._idle if entry[0] > limit]
            left = bool(self._idle)
        for record in old:
            record.close()
        return left

    def status(self) -> str:
        """For SQLAlchemy's log."""
        return f"{type(self).__name__} size {self._size}, idle {self.checkedin()}"

    def recreate(self) -> BriefPool:
        """A new pool with the same settings."""
        return type(self)(
            self._creator,
            pool_size=self._size,
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

    def _do_get(self) -> Any:
        if not self._places.acquire(timeout=POOL_WAIT):
            raise PoolTimeout(f"no connection became free within {POOL_WAIT:g} s")
        with self._guard:
            if self._idle:
                return self._idle.pop()[1]
        try:
            return self._create_connection()
        except BaseException as error:
            self._places.release()
            if any(words in str(error) for words in FULL):
                _crowd.met_at = time.monotonic()
            raise

    def _do_return_conn(self, record: Any) -> None:
        now = time.monotonic()
        since = record.info.setdefault("since", now)
        if now - since >= LIFE_SECONDS or now - _crowd.met_at < CROWDED_SECONDS:
            record.close()
            self._places.release()
            return
        with self._guard:
            self._idle.append((now, record))
        self._places.release()
        _reaper.watch(self)


class _Crowd:
    """What this process has met of other clients."""

    met_at = -math.inf
    """When a server was last too full for us."""


_crowd = _Crowd()


class _Reaper:
    """The thread that closes idle connections; it ends when there are none."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pools: WeakSet[BriefPool] = WeakSet()
        self._thread: threading.Thread | None = None

    def watch(self, pool: BriefPool) -> None:
        """Look after a pool that has an idle connection."""
        with self._guard:
            self._pools.add(pool)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="shoal idle connections", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS / 2)
            with self._guard:
                pools = list(self._pools)
            done = [pool for pool in pools if not pool.close_idle()]
            with self._guard:
                # A connection may have come back meanwhile; then its pool stays.
                self._pools -= WeakSet(pool for pool in done if not pool.checkedin())
                if not self._pools:
                    self._thread = None
                    return


_reaper = _Reaper()
