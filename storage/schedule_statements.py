"""The statements of `storage.schedules`. Times are the database's, moved by `ahead` in tests."""

from __future__ import annotations

from storage.schedule_records import SETTINGS

CLOCK = "(clock_timestamp() + :ahead)"
"""The time. Nothing here asks another clock; `ahead` is zero but in tests, which can't wait for hours."""

COLUMNS = (
    "id, name, spec, cron, timezone, overlap, each, budget_seconds, stalled_seconds, late_seconds, webhook, "
    "webhook_format, options, paused_at, removed_at, decided_until, created_at, updated_at"
)
FIRING = (
    "id, schedule_id, generation, scheduled_for, manual, state, reason, missed, experiment, attempts, "
    "runner, lease_until, budget_seconds, spent_seconds, report, created_at, started_at, ended_at"
)

CREATE = f"""
INSERT INTO shoal.schedules
    (name, {", ".join(SETTINGS)}, decided_until, created_at, updated_at)
VALUES (:name, CAST(:spec AS json), :cron, :timezone, :overlap, :each, :budget_seconds, :stalled_seconds,
        :late_seconds, :webhook, :webhook_format, CAST(:options AS json), {CLOCK}, {CLOCK}, {CLOCK})
ON CONFLICT (name) DO NOTHING
RETURNING {COLUMNS}
"""

CHANGE = f"""
UPDATE shoal.schedules
SET spec = CAST(:spec AS json), cron = :cron, timezone = :timezone, overlap = :overlap, each = :each,
    budget_seconds = :budget_seconds, stalled_seconds = :stalled_seconds, late_seconds = :late_seconds,
    webhook = :webhook, webhook_format = :webhook_format, options = CAST(:options AS json),
    paused_at = CASE WHEN removed_at IS NULL THEN paused_at END, removed_at = NULL,
    decided_until = {CLOCK}, updated_at = {CLOCK}
WHERE id = :id
RETURNING {COLUMNS}
"""

PAUSE = f"""
UPDATE shoal.schedules SET paused_at = coalesce(paused_at, {CLOCK}), updated_at = {CLOCK}
WHERE name = :name AND removed_at IS NULL RETURNING {COLUMNS}
"""

# What was due meanwhile is not made up for: somebody did not want it.
RESUME = f"""
UPDATE shoal.schedules
SET decided_until = CASE WHEN paused_at IS NULL THEN decided_until ELSE {CLOCK} END, paused_at = NULL,
    updated_at = {CLOCK}
WHERE name = :name AND removed_at IS NULL RETURNING {COLUMNS}
"""

REMOVE = f"""
UPDATE shoal.schedules SET removed_at = {CLOCK}, updated_at = {CLOCK}
WHERE name = :name AND removed_at IS NULL RETURNING {COLUMNS}
"""

END_QUEUED = f"""
UPDATE shoal.firings SET state = 'stopped', reason = 'its schedule was removed', ended_at = {CLOCK}
WHERE schedule_id = :id AND state = 'queued'
"""

LIVE_FIRINGS = f"""
SELECT {FIRING} FROM shoal.firings
WHERE schedule_id = :id AND state IN ('queued', 'running') ORDER BY generation
"""

ADD = f"""
INSERT INTO shoal.firings
    (schedule_id, generation, scheduled_for, manual, state, reason, missed, budget_seconds, created_at,
     ended_at)
SELECT :id, 1 + coalesce(max(generation), 0), :scheduled_for, :manual, :state, :reason, :missed,
       :budget_seconds, CAST(:now AS timestamptz),
       CASE WHEN :state <> 'queued' THEN CAST(:now AS timestamptz) END
FROM shoal.firings WHERE schedule_id = :id
ON CONFLICT (schedule_id, scheduled_for) DO NOTHING
RETURNING {FIRING}
"""

DECIDED = "UPDATE shoal.schedules SET decided_until = greatest(decided_until, :now) WHERE id = :id"

# The oldest that is not over comes first, so no two of a schedule run at once.
CLAIM = f"""
UPDATE shoal.firings
SET state = 'running', attempts = attempts + 1, runner = :runner, reason = NULL,
    started_at = coalesce(started_at, {CLOCK}), beaten_at = {CLOCK}, lease_until = {CLOCK} + :lease
WHERE id = (
    SELECT firing.id
    FROM shoal.firings AS firing JOIN shoal.schedules AS schedule ON schedule.id = firing.schedule_id
    WHERE firing.schedule_id = :id AND schedule.removed_at IS NULL
      AND (schedule.paused_at IS NULL OR firing.manual)
      AND firing.state IN ('queued', 'running')
      AND NOT EXISTS (
          SELECT FROM shoal.firings AS other
          WHERE other.schedule_id = firing.schedule_id AND other.generation < firing.generation
            AND other.state IN ('queued', 'running'))
    FOR UPDATE OF firing
)
AND (state = 'queued' OR state = 'running' AND lease_until < {CLOCK})
RETURNING {FIRING}
"""

NAME_EXPERIMENT = "UPDATE shoal.firings SET experiment = :experiment WHERE id = :id AND attempts = :attempt"

SPENT = f"spent_seconds + greatest(0, extract(epoch FROM {CLOCK} - beaten_at))"

BEAT = f"""
UPDATE shoal.firings
SET spent_seconds = {SPENT}, beaten_at = {CLOCK}, lease_until = {CLOCK} + :lease
WHERE id = :id AND state = 'running' AND attempts = :attempt
RETURNING {CLOCK} AS now, spent_seconds,
          (SELECT removed_at IS NOT NULL FROM shoal.schedules WHERE id = schedule_id) AS removed
"""

END = f"""
UPDATE shoal.firings
SET state = :state, reason = :reason, report = :report, ended_at = {CLOCK}, spent_seconds = {SPENT},
    beaten_at = NULL, lease_until = NULL
WHERE id = :id AND state = 'running' AND attempts = :attempt
RETURNING {FIRING}
"""

RELEASE = f"""
UPDATE shoal.firings
SET state = 'queued', reason = :reason, spent_seconds = {SPENT}, beaten_at = NULL, lease_until = NULL
WHERE id = :id AND state = 'running' AND attempts = :attempt
"""
