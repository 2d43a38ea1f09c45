"""How every connection to Postgres is set up, whoever makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONNECT_TIMEOUT = 10
"""Seconds."""

CONNECTION: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
"""What the driver is told."""

SESSION = """
SELECT set_config('TimeZone', 'UTC', false),
       set_config('tcp_keepalives_idle', '30', false),
       set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('statement_timeout', '{statement}', false),
       set_config('lock_timeout', '{lock}', false),
       set_config('idle_in_transaction_session_timeout', '60s', false),
       set_config('random_page_cost', '1.1', false),
       CASE WHEN current_user = 'shoal' THEN set_config('search_path', 'public', false) END
"""
"""What every connection starts with. Optuna stores times without a zone and compares them with
now(), so the zone is pinned. Keepalives let the server notice within a minute that a machine is
gone, and free its locks. No statement, no wait for a lock and no forgotten transaction holds
others up for ever. What is looked up was mostly written a moment ago and costs no seek: a planner
that reckons with one reads a whole table to find a pool's rows. A role called as our schema would
search that schema first for Optuna's tables."""

STATEMENT_LIMITS: Mapping[str, str] = {"statement": "60s", "lock": "20s"}
"""Of connections that nobody is meant to wait on."""
