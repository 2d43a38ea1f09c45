"""The statements of `StockLedger`: on our own tables alone, in the driver's notation."""

from __future__ import annotations

from storage.ledger_statements import EVENT, OF_ATTEMPT
from storage.write_statements import PASSED, REFUSALS_TOLD

SPOILED = """(SELECT count(*) FROM shoal.attempts AS earlier
        WHERE earlier.trial_id = attempt.trial_id AND earlier.state IN ('failed', 'lost')) AS spoiled"""

KNOWN = "SELECT id FROM shoal.experiment_studies WHERE name = %(study)s"

STUDIES = "SELECT id, name FROM shoal.experiment_studies WHERE experiment_id = %(experiment)s ORDER BY id"

BEGIN = f"""
WITH begun AS (
    INSERT INTO shoal.attempts
        (study_id, trial_id, trial_number, number, worker_id, deadline, beaten_at, last_write, started_at)
    SELECT id, %(trial)s, %(number)s,
           1 + coalesce((SELECT max(number) FROM shoal.attempts WHERE trial_id = %(trial)s), 0),
           %(worker)s, clock_timestamp() + make_interval(secs => %(ttl)s), clock_timestamp(), %(write)s,
           clock_timestamp()
    FROM shoal.experiment_studies WHERE name = %(study)s
    ON CONFLICT DO NOTHING
    RETURNING *
), told AS (
    {EVENT}
    SELECT 'claimed', {OF_ATTEMPT}, NULL
    FROM begun AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
)
SELECT number, token, deadline, (SELECT max(epoch) FROM shoal.epochs WHERE trial_id = %(trial)s) AS last_step
FROM begun
"""

HOLD = """
SELECT token, trial_id, state FROM shoal.attempts WHERE token = ANY(%(tokens)s)
ORDER BY trial_id FOR NO KEY UPDATE
"""

FENCE = f"""
UPDATE shoal.attempts AS attempt
SET deadline = clock_timestamp() + make_interval(secs => %(ttl)s), beaten_at = clock_timestamp(),
    last_write = %(write)s, last_step = coalesce(said.last_step, attempt.last_step),
    sampler_seconds = coalesce(said.sampler_seconds, attempt.sampler_seconds)
FROM json_to_recordset(CAST(%(said)s AS json))
        AS said(token bigint, first_step int, last_step int, sampler_seconds float8)
WHERE attempt.token = said.token AND attempt.state = 'running' AND attempt.deadline > clock_timestamp()
  AND coalesce(said.first_step > attempt.last_step, true)
RETURNING attempt.token, attempt.trial_id, {SPOILED}
"""

DRAWN = f"""
{EVENT}
SELECT 'drawn', {OF_ATTEMPT}, json_build_object('sampler_seconds', attempt.sampler_seconds)
FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE attempt.token = ANY(%(drawn)s) AND {PASSED}
ORDER BY attempt.token
"""

CUT = "SELECT shoal.cut_curves(CAST(%(ended)s AS bigint[]), false)"

CLOSE = f"""
WITH said AS (
    SELECT * FROM json_to_recordset(CAST(%(closings)s AS json))
        AS said(token bigint, state text, kind text, reason text, traceback text)
), closed AS (
    UPDATE shoal.attempts AS attempt
    SET state = said.state, reason = said.reason, traceback = said.traceback, ended_at = clock_timestamp()
    FROM said WHERE attempt.token = said.token AND attempt.state = 'running'
    RETURNING attempt.study_id, attempt.trial_id, attempt.trial_number, attempt.number, attempt.token,
              attempt.worker_id, said.kind, said.reason
)
{EVENT}
SELECT attempt.kind, {OF_ATTEMPT},
       CASE WHEN attempt.reason IS NOT NULL THEN json_build_object('reason', attempt.reason) END
FROM closed AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
ORDER BY attempt.token
"""

REFUSED = f"""
WITH refused AS (
    SELECT said.token, CASE
        WHEN strange.reason IS NOT NULL THEN strange.reason
        WHEN attempt.id IS NULL THEN 'there is no such lease'
        WHEN attempt.state = 'lost' THEN 'the lease was taken back: ' || attempt.reason
        WHEN attempt.state <> 'running' THEN 'the attempt has ended: ' || attempt.state
        WHEN attempt.deadline <= clock_timestamp() THEN 'the lease ran out'
        ELSE 'epoch ' || said.first_step || ' after epoch ' || attempt.last_step END AS reason
    FROM json_to_recordset(CAST(%(said)s AS json)) AS said(token bigint, first_step int)
    LEFT JOIN json_to_recordset(CAST(%(strange)s AS json)) AS strange(token bigint, reason text)
           ON strange.token = said.token
    LEFT JOIN shoal.attempts AS attempt ON attempt.token = said.token
{REFUSALS_TOLD}"""

HELD_BY = """
SELECT token, trial_id FROM shoal.attempts WHERE worker_id = %(worker)s AND state = 'running'
ORDER BY trial_id FOR NO KEY UPDATE
"""

OVER = f"""
SELECT attempt.token, attempt.trial_id, attempt.trial_number, attempt.number, study.name AS study,
       worker.name AS worker, {SPOILED},
       CASE WHEN attempt.worker_id = ANY(%(dead)s)
            THEN 'its worker ended' ELSE 'its lease ran out' END AS cause
FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE attempt.state = 'running' AND study.experiment_id = %(experiment)s
  AND (attempt.deadline <= clock_timestamp() OR attempt.worker_id = ANY(%(dead)s))
ORDER BY attempt.trial_id
FOR NO KEY UPDATE OF attempt SKIP LOCKED
"""

RETRIED = """
INSERT INTO shoal.events (kind, experiment_id, study_id, trial_id, trial_number, detail)
SELECT 'retried', experiment_id, id, %(trial)s, %(number)s, CAST(%(detail)s AS json)
FROM shoal.experiment_studies WHERE id = %(study)s
"""
