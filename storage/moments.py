"""Locks that are held for moments: how they are taken and freed, and what a thread sends meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

UNLOCK = "SELECT pg_advisory_unlock(:key)"
TRY_FOR = """
SELECT got, CASE WHEN got AND current_setting('idle_session_timeout', true) IS NOT NULL
                 THEN set_config('idle_session_timeout', :idle, false) END
FROM (SELECT pg_try_advisory_lock(:key) AS got OFFSET 0) AS tried
"""
FREE = """
SELECT pg_advisory_unlock(:key),
       CASE WHEN current_setting('idle_session_timeout', true) IS NOT NULL
            THEN set_config('idle_session_timeout', '0', false) END
"""
"""The connection goes to others then, who may leave it idle for as long as they like."""


class Held(threading.local):
    """What a thread holds."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        """URL → the connection on which this thread holds a lock: what else it sends goes the same way, so
        that nobody who holds a lock waits for a place on a full server."""


held_here = Held()
