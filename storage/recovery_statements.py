"""The statements of `BatchedLedger` that take trials back: expired leases, retired workers, failed trials.

As in `storage.ledger_statements`: in the driver's notation, locks in one order, several in one round trip.
"""

from __future__ import annotations

from storage.ledger_statements import EVENT, NOW, OF_ATTEMPT, SEED_KEY

OVER = """attempt.state = 'running' AND study.experiment_id = %(experiment)s
     AND (attempt.deadline <= clock_timestamp() OR attempt.worker_id = ANY(%(dead)s))"""

# Whoever writes at this moment holds the rows: then the lease lives, and is not waited for.
EXPIRE = f"""
WITH over AS MATERIALIZED (
    SELECT attempt.*, study.experiment_id, trial.state AS trial_state
    FROM shoal.attempts AS attempt
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    WHERE {OVER}
    ORDER BY attempt.trial_id
    FOR NO KEY UPDATE OF trial, attempt SKIP LOCKED
), fate AS MATERIALIZED (
    SELECT over.*, trial_state = 'RUNNING' AND 1 + (
               SELECT count(*) FROM shoal.attempts AS earlier
               WHERE earlier.trial_id = over.trial_id AND earlier.state IN ('failed', 'lost')
           ) >= %(most)s AS given_up,
           CASE WHEN worker_id = ANY(%(dead)s) THEN 'its worker ended' ELSE 'its lease ran out' END AS cause
    FROM over
), noted AS (
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, 'reason', CAST(to_json(CAST(%(reason)s AS text)) AS text) FROM fate WHERE given_up
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
), moved AS (
    UPDATE trials AS trial
    SET state = CASE WHEN given_up THEN CAST('FAIL' AS trialstate) ELSE 'WAITING' END,
        datetime_complete = CASE WHEN given_up THEN {NOW} ELSE trial.datetime_complete END
    FROM fate WHERE trial.trial_id = fate.trial_id AND fate.trial_state = 'RUNNING'
), unmarked AS (
    UPDATE trial_user_attributes AS mark SET value_json = 'null' FROM fate
    WHERE mark.trial_id = fate.trial_id AND mark.key = '{SEED_KEY}'
      AND fate.trial_state = 'RUNNING' AND NOT fate.given_up
), closed AS (
    UPDATE shoal.attempts AS attempt
    SET state = 'lost', reason = fate.cause, ended_at = clock_timestamp(), last_write = %(write)s
    FROM fate WHERE attempt.id = fate.id
)
{EVENT}
SELECT CASE WHEN attempt.given_up THEN 'given_up' ELSE 'expired' END,
       attempt.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number, attempt.number,
       attempt.token, attempt.worker_id, %(write)s,
       json_build_object('reason', attempt.cause, 'trial', attempt.trial_state)
FROM fate AS attempt
ORDER BY attempt.token;
"""

# Somebody deleted the study from Optuna's tables.
BURY = f"""
WITH over AS (
    UPDATE shoal.attempts AS attempt
    SET state = 'lost', reason = 'its trial was deleted', ended_at = clock_timestamp(),
        last_write = %(write)s
    FROM shoal.experiment_studies AS study
    WHERE study.id = attempt.study_id AND {OVER}
      AND NOT EXISTS (SELECT FROM trials WHERE trials.trial_id = attempt.trial_id)
    RETURNING attempt.*, study.experiment_id
)
{EVENT}
SELECT 'expired', attempt.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number,
       attempt.number, attempt.token, attempt.worker_id, %(write)s,
       json_build_object('reason', 'its trial was deleted')
FROM over AS attempt ORDER BY attempt.token;
"""

EXPIRED = """
SELECT study.name, event.trial_id, event.trial_number, event.attempt, worker.name, event.kind = 'given_up'
FROM shoal.events AS event
JOIN shoal.experiment_studies AS study ON study.id = event.study_id
JOIN shoal.workers AS worker ON worker.id = event.worker_id
WHERE event.experiment_id = %(experiment)s AND event.write = %(write)s
  AND event.detail ->> 'trial' = 'RUNNING'
ORDER BY event.id
"""

HOLD_WORKERS_TRIALS = """
SELECT FROM shoal.workers WHERE id = %(worker)s FOR NO KEY UPDATE;
SELECT count(*) FROM (
    SELECT FROM shoal.attempts AS attempt JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    WHERE attempt.worker_id = %(worker)s AND attempt.state = 'running' ORDER BY attempt.trial_id
    FOR NO KEY UPDATE OF trial, attempt
) AS held;
"""

RELEASE = f"""
WITH freed AS (
    UPDATE shoal.attempts AS attempt
    SET state = 'released', ended_at = clock_timestamp(), last_write = %(write)s
    WHERE attempt.worker_id = %(worker)s AND attempt.state = 'running'
    RETURNING attempt.*
), moved AS (
    UPDATE trials SET state = 'WAITING' FROM freed
    WHERE trials.trial_id = freed.trial_id AND trials.state = 'RUNNING'
), unmarked AS (
    UPDATE trial_user_attributes AS mark SET value_json = 'null' FROM freed, trials
    WHERE mark.trial_id = freed.trial_id AND mark.key = '{SEED_KEY}'
      AND trials.trial_id = freed.trial_id AND trials.state = 'RUNNING'
)
{EVENT}
SELECT 'released', {OF_ATTEMPT}, json_build_object('reason', 'its worker retired')
FROM freed AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
ORDER BY attempt.token;
"""

RETIRE = """
WITH ended AS (
    UPDATE shoal.workers SET ended_at = clock_timestamp()
    WHERE id = %(worker)s AND ended_at IS NULL
    RETURNING id
), told AS (
    INSERT INTO shoal.events (kind, worker_id, write) SELECT 'retired', id, %(write)s FROM ended
)
SELECT id FROM ended
"""

# ---- failed trials once more ----

LOCK_STUDIES = """
SELECT count(*) FROM (
    SELECT FROM studies JOIN shoal.experiment_studies AS held ON held.name = studies.study_name
    WHERE held.experiment_id = %(experiment)s ORDER BY studies.study_id FOR NO KEY UPDATE OF studies
) AS held;
"""

RETRY = f"""
WITH failed AS MATERIALIZED (
    SELECT trial.trial_id, trial.number, trial.study_id, held.id AS held, held.experiment_id,
           (SELECT count(*) FROM trials AS any_trial WHERE any_trial.study_id = trial.study_id) - 1
             + row_number() OVER (PARTITION BY trial.study_id ORDER BY trial.number) AS new_number
    FROM shoal.experiment_studies AS held
    JOIN studies ON studies.study_name = held.name
    JOIN trials AS trial ON trial.study_id = studies.study_id AND trial.state = 'FAIL'
    WHERE held.experiment_id = %(experiment)s AND NOT EXISTS (
        SELECT FROM trials AS later
        JOIN trial_user_attributes AS noted
          ON noted.trial_id = later.trial_id AND noted.key = 'shoal:retry_of'
        WHERE later.study_id = trial.study_id AND noted.value_json = CAST(trial.number AS text))
), made AS (
    INSERT INTO trials (number, study_id, state)
    SELECT new_number, study_id, 'WAITING' FROM failed ORDER BY study_id, new_number
    RETURNING trial_id, study_id, number
), pair AS MATERIALIZED (
    SELECT failed.*, made.trial_id AS new_id
    FROM failed JOIN made ON made.study_id = failed.study_id AND made.number = failed.new_number
), drawn AS (
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT pair.new_id, param.param_name, param.param_value, param.distribution_json
    FROM pair JOIN trial_params AS param ON param.trial_id = pair.trial_id ORDER BY param.param_id
), noted AS (
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT pair.new_id, old.key, old.value_json
    FROM pair JOIN trial_user_attributes AS old ON old.trial_id = pair.trial_id
    WHERE old.key NOT IN (
        'reason', 'epochs', 'diverged', 'diverged_epoch', 'shoal:retry_of', '{SEED_KEY}')
    UNION ALL
    SELECT new_id, 'shoal:retry_of', CAST(number AS text) FROM pair
), marked AS (
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT pair.new_id, old.key, old.value_json
    FROM pair JOIN trial_system_attributes AS old ON old.trial_id = pair.trial_id
    WHERE old.key NOT IN ('failed_trial', 'retry_history') AND old.key NOT LIKE 'completed_rung_%%'
    UNION ALL
    SELECT pair.new_id, 'failed_trial', coalesce(root.value_json, CAST(pair.number AS text))
    FROM pair LEFT JOIN trial_system_attributes AS root
           ON root.trial_id = pair.trial_id AND root.key = 'failed_trial'
    UNION ALL
    SELECT pair.new_id, 'retry_history',
           CAST(coalesce(CAST(past.value_json AS jsonb), '[]') || to_jsonb(pair.number) AS text)
    FROM pair LEFT JOIN trial_system_attributes AS past
           ON past.trial_id = pair.trial_id AND past.key = 'retry_history'
)
INSERT INTO shoal.events (kind, experiment_id, study_id, trial_id, trial_number, write, detail)
SELECT 'retried', experiment_id, held, trial_id, number, %(write)s,
       json_build_object('new_number', new_number, 'new_trial_id', new_id)
FROM pair ORDER BY held, number;
"""

RETRIED = """
SELECT study.name, event.trial_number, CAST(event.detail ->> 'new_number' AS int)
FROM shoal.events AS event JOIN shoal.experiment_studies AS study ON study.id = event.study_id
WHERE event.experiment_id = %(experiment)s AND event.kind = 'retried' AND event.write = %(write)s
ORDER BY event.id
"""
