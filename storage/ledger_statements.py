"""The statements of `BatchedLedger`, in the driver's notation; several of them make one round trip.

They write Optuna's tables as Optuna 5 does (schema revision v3.2.0.a): times are UTC without a
zone, a value is finite or NULL with a type beside it, attributes are JSON as text. Locks are
always taken in one order, so that pools never wait for each other in a circle: worker, study,
then trials by id with their attempts.
"""

from __future__ import annotations

SEED_KEY = "shoal:seed"
"""User attribute of a trial that one of our workers runs or has run. What goes back to the queue loses it: a
foreign client that takes it from there takes none of our places, however that client ends."""

NOW = "timezone('UTC', clock_timestamp())"
"""The moment, as Optuna stores it."""

EVENT = """
INSERT INTO shoal.events
    (kind, experiment_id, study_id, trial_id, trial_number, attempt, token, worker_id, write, detail)
"""

OF_ATTEMPT = """study.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number, attempt.number,
       attempt.token, attempt.worker_id, %(write)s"""
"""The columns after an event's kind, given `attempt` and its `study`."""

REGISTER = """
WITH made AS (
    INSERT INTO shoal.workers
        (name, host, process, boot, process_space, process_birth, registration)
    VALUES (%(name)s, %(host)s, %(process)s, %(boot)s, %(process_space)s, %(process_birth)s, %(write)s)
    ON CONFLICT (registration) DO UPDATE SET name = excluded.name
    RETURNING id
), told AS (
    INSERT INTO shoal.events (kind, worker_id, write, detail)
    SELECT 'registered', id, %(write)s, CAST(%(told)s AS json) FROM made
    WHERE NOT EXISTS (SELECT FROM shoal.workers WHERE registration = %(write)s)
)
SELECT id FROM made
"""

# A worker's claims happen one after the other, also where the answer to one was lost and the
# server still works on it while the next is sent.
ONE_CLAIM_AT_A_TIME = """
SELECT set_config('lock_timeout', '2s', true);
SELECT FROM shoal.workers WHERE id = %(worker)s FOR NO KEY UPDATE;
"""

# A statement of its own: one that counts has to begin after the lock was got.
LOCK_STUDY = "SELECT FROM studies WHERE study_name = %(study)s FOR NO KEY UPDATE;"

TAKE = f"""
WITH held AS (SELECT id FROM shoal.experiment_studies WHERE name = %(study)s),
picked AS MATERIALIZED (
    SELECT trial.trial_id, trial.number
    FROM studies JOIN trials AS trial ON trial.study_id = studies.study_id
    WHERE studies.study_name = %(study)s AND trial.state = 'WAITING' AND EXISTS (SELECT FROM held)
      AND (CAST(%(among)s AS int[]) IS NULL OR trial.number = ANY(CAST(%(among)s AS int[])))
      AND NOT EXISTS (
        SELECT FROM shoal.attempts WHERE attempts.trial_id = trial.trial_id AND attempts.state = 'running')
    ORDER BY NOT EXISTS (SELECT FROM trial_params WHERE trial_params.trial_id = trial.trial_id), trial.number
    LIMIT %(waiting)s
    FOR NO KEY UPDATE OF trial SKIP LOCKED
), begun AS (
    UPDATE trials SET state = 'RUNNING', datetime_start = {NOW}
    FROM picked WHERE trials.trial_id = picked.trial_id
)
INSERT INTO shoal.attempts
    (study_id, trial_id, trial_number, number, worker_id, deadline, beaten_at, last_write, started_at)
SELECT held.id, picked.trial_id, picked.number,
       1 + coalesce((SELECT max(number) FROM shoal.attempts WHERE trial_id = picked.trial_id), 0),
       %(worker)s, clock_timestamp() + make_interval(secs => %(ttl)s), clock_timestamp(), %(write)s,
       clock_timestamp()
FROM picked, held;
"""

MAKE = f"""
WITH target AS (
    SELECT studies.study_id, held.id AS held, counted.before
    FROM studies JOIN shoal.experiment_studies AS held ON held.name = studies.study_name
    CROSS JOIN LATERAL (
        SELECT count(*) AS before FROM trials WHERE trials.study_id = studies.study_id
    ) AS counted
    WHERE studies.study_name = %(study)s AND coalesce(%(of)s, counted.before) = counted.before
), made AS (
    INSERT INTO trials (number, study_id, state, datetime_start)
    SELECT target.before + place, target.study_id, 'RUNNING', {NOW}
    FROM target, generate_series(0, %(new)s - 1) AS place
    ORDER BY place
    RETURNING trial_id, number
)
INSERT INTO shoal.attempts
    (study_id, trial_id, trial_number, number, worker_id, deadline, beaten_at, last_write, started_at)
SELECT target.held, made.trial_id, made.number, 1, %(worker)s,
       clock_timestamp() + make_interval(secs => %(ttl)s), clock_timestamp(), %(write)s, clock_timestamp()
FROM made, target
ORDER BY made.number;
"""

CLAIMED = f"""
{EVENT}
SELECT 'claimed', {OF_ATTEMPT}, NULL
FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE attempt.worker_id = %(worker)s AND attempt.state = 'running' AND attempt.last_write = %(write)s
ORDER BY attempt.token;
"""

_LEASES = """
SELECT place.known, attempt.trial_id, attempt.trial_number, attempt.number, attempt.token, attempt.deadline,
       {history}
FROM (SELECT EXISTS (SELECT FROM shoal.experiment_studies WHERE name = %(study)s)
         AND EXISTS (SELECT FROM studies WHERE study_name = %(study)s) AS known) AS place
LEFT JOIN shoal.attempts AS attempt
       ON attempt.worker_id = %(worker)s AND attempt.state = 'running' AND attempt.last_write = %(write)s
ORDER BY attempt.token
"""

LEASES = _LEASES.format(
    history="""
       (SELECT json_agg(json_build_array(param_name, param_value, distribution_json) ORDER BY param_id)
        FROM trial_params WHERE trial_params.trial_id = attempt.trial_id),
       (SELECT value_json FROM trial_system_attributes AS fixed
        WHERE fixed.trial_id = attempt.trial_id AND fixed.key = 'fixed_params'),
       (SELECT json_object_agg(key, value_json) FROM trial_user_attributes AS noted
        WHERE noted.trial_id = attempt.trial_id),
       (SELECT max(epoch) FROM shoal.epochs WHERE epochs.trial_id = attempt.trial_id)"""
)
NEW_LEASES = _LEASES.format(history="NULL, NULL, NULL, NULL")
"""Of trials that were made with the claim, which have no history."""
