"""Optuna's own heartbeats, for clients that run `study.optimize` with them. Workers of ours have leases."""

from __future__ import annotations

from collections.abc import Collection

from storage.optuna.wire import Wire
from storage.values import numbers

_RECORD = """
INSERT INTO trial_heartbeats (trial_id, heartbeat)
SELECT trial_id, clock_timestamp() AT TIME ZONE 'UTC' FROM trials WHERE trial_id = ANY(%s::int[])
ORDER BY trial_id
ON CONFLICT (trial_id) DO UPDATE SET heartbeat = excluded.heartbeat
RETURNING trial_id
"""

_STALE = """
SELECT trial_id FROM trials JOIN trial_heartbeats USING (trial_id)
WHERE study_id = %s AND state = 'RUNNING'
  AND clock_timestamp() AT TIME ZONE 'UTC' - heartbeat > make_interval(secs => %s)
ORDER BY trial_id
"""


def record(wire: Wire, trial_ids: Collection[int]) -> None:
    """Note that trials are alive: one round trip for any number of them."""
    wire.run(_RECORD, (numbers(trial_ids),))


def stale(wire: Wire, study_id: int, seconds: float) -> list[int]:
    """Running trials of a study whose last heartbeat is older than that; those without any don't count."""
    return [trial_id for (trial_id,) in wire.run(_STALE, (study_id, seconds)).rows]
