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
"""  # noqa: S608 (here and below: only our own constants are put in)

MAKE = f"""
WITH target AS (
    SELECT studies.study_id, held.id AS held,
           (SELECT count(*) FROM trials WHERE trials.study_id = studies.study_id) AS before
    FROM studies JOIN shoal.experiment_studies AS held ON held.name = studies.study_name
    WHERE studies.study_name = %(study)s AND coalesce(%(of)s, (
        SELECT count(*) FROM trials WHERE trials.study_id = studies.study_id
    )) = (SELECT count(*) FROM trials WHERE trials.study_id = studies.study_id)
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
"""  # noqa: S608

CLAIMED = f"""
{EVENT}
SELECT 'claimed', {OF_ATTEMPT}, NULL
FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE attempt.worker_id = %(worker)s AND attempt.state = 'running' AND attempt.last_write = %(write)s
ORDER BY attempt.token;
"""  # noqa: S608

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

# ---- write ----

HOLD = """
SELECT count(*) FROM (
    SELECT FROM shoal.attempts AS attempt JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    WHERE attempt.token = ANY(%(tokens)s) ORDER BY attempt.trial_id
    FOR NO KEY UPDATE OF trial, attempt
) AS held;
"""

LANDED = """
SELECT EXISTS (SELECT FROM shoal.attempts WHERE token = ANY(%(tokens)s) AND last_write = %(write)s)
    OR EXISTS (SELECT FROM shoal.events WHERE write = %(write)s)
"""
"""After HOLD: whether a write whose answer was lost had been committed."""

ANSWER = """
SELECT token, CASE kind WHEN 'refused' THEN detail ->> 'reason' END
FROM shoal.events WHERE write = %(write)s AND kind IN ('refused', 'given_up')
"""
"""What a write that was committed answered: refused leases with their reasons, given up ones without."""

# The fence. What passes it keeps its row locked, so that nobody takes the lease before we commit.
FENCE = """
UPDATE shoal.attempts AS attempt
SET deadline = clock_timestamp() + make_interval(secs => %(ttl)s), beaten_at = clock_timestamp(),
    last_write = %(write)s, last_step = coalesce(said.last_step, attempt.last_step),
    sampler_seconds = coalesce(said.sampler_seconds, attempt.sampler_seconds)
FROM json_to_recordset(CAST(%(said)s AS json))
        AS said(token bigint, first_step int, last_step int, sampler_seconds float8),
     trials AS trial
WHERE attempt.token = said.token AND trial.trial_id = attempt.trial_id AND trial.state = 'RUNNING'
  AND attempt.state = 'running' AND attempt.deadline > clock_timestamp()
  AND coalesce(said.first_step > attempt.last_step, true)
  AND attempt.last_write IS DISTINCT FROM %(write)s;
"""

PASSED = "attempt.last_write = %(write)s AND attempt.state = 'running'"
"""Of a lease: that it passed the fence of this write."""

DRAW = f"""
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT attempt.trial_id, kinds.name, said.value, kinds.distribution
FROM unnest(%(draw_tokens)s::bigint[], %(draw_kinds)s::int[], %(draw_values)s::float8[])
        WITH ORDINALITY AS said(token, kind, value, place)
JOIN unnest(%(kind_names)s::text[], %(kind_distributions)s::text[])
        WITH ORDINALITY AS kinds(name, distribution, kind) USING (kind)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
ORDER BY attempt.trial_id, said.place
ON CONFLICT (trial_id, param_name)
DO UPDATE SET param_value = excluded.param_value, distribution_json = excluded.distribution_json;
{EVENT}
SELECT 'drawn', {OF_ATTEMPT}, json_build_object('sampler_seconds', attempt.sampler_seconds)
FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE attempt.token = ANY(%(drawn)s) AND {PASSED}
ORDER BY attempt.token;
"""  # noqa: S608

NOTE = f"""
INSERT INTO trial_user_attributes (trial_id, key, value_json)
SELECT attempt.trial_id, said.key, said.value
FROM json_to_recordset(CAST(%(notes)s AS json)) AS said(token bigint, key text, value text)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
ORDER BY attempt.trial_id
ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
"""  # noqa: S608

SAID_EPOCHS = f"""
SELECT said.*, attempt.trial_id, attempt.number, attempt.study_id, attempt.trial_number
FROM json_to_recordset(CAST(%(epochs)s AS json)) AS said(
    token bigint, epoch int, train_loss float8, validation_loss float8, metrics json,
    gradient_norm float8, learning_rate float8, seconds float8, images_per_second float8,
    diverged boolean, value float8)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
"""  # noqa: S608

REPORT = f"""
INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT trial_id, epoch, value, 'FINITE' FROM ({SAID_EPOCHS}) AS said ORDER BY trial_id, epoch
ON CONFLICT (trial_id, step) DO UPDATE
SET intermediate_value = excluded.intermediate_value,
    intermediate_value_type = excluded.intermediate_value_type;
"""  # noqa: S608

POINTS = f"""
INSERT INTO shoal.epochs
    (trial_id, epoch, attempt, study_id, trial_number, train_loss, validation_loss, metrics,
     gradient_norm, learning_rate, seconds, images_per_second, diverged)
SELECT trial_id, epoch, number, study_id, trial_number, train_loss, validation_loss, metrics,
       gradient_norm, learning_rate, seconds, images_per_second, diverged
FROM ({SAID_EPOCHS}) AS said ORDER BY trial_id, epoch
ON CONFLICT (trial_id, epoch) DO UPDATE
SET attempt = excluded.attempt, train_loss = excluded.train_loss,
    validation_loss = excluded.validation_loss, metrics = excluded.metrics,
    gradient_norm = excluded.gradient_norm, learning_rate = excluded.learning_rate,
    seconds = excluded.seconds, images_per_second = excluded.images_per_second,
    diverged = excluded.diverged, written_at = clock_timestamp();
"""  # noqa: S608

# A trial that went on from before an epoch which an earlier attempt had reported may end there:
# then what came after is no part of its curve.
CUT = f"""
SELECT shoal.cut_curves(array_agg(attempt.token ORDER BY attempt.trial_id), true)
FROM json_to_recordset(CAST(%(endings)s AS json)) AS said(token bigint, state text)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
WHERE said.state IN ('complete', 'pruned') AND attempt.number > 1
HAVING count(*) > 0;
"""  # noqa: S608

# A pruned trial's value is its last report, as Optuna's `tell` has it (optuna/study/_tell.py).
END = f"""
WITH ended AS MATERIALIZED (
    SELECT attempt.id, attempt.study_id, attempt.trial_id, attempt.trial_number, attempt.number,
           attempt.token, attempt.worker_id, said.state AS said_state, said.value, said.reason,
           said.traceback,
           said.state = 'retry' AND 1 + (
               SELECT count(*) FROM shoal.attempts AS earlier
               WHERE earlier.trial_id = attempt.trial_id AND earlier.state IN ('failed', 'lost')
           ) >= %(most)s AS given_up
    FROM json_to_recordset(CAST(%(endings)s AS json))
            AS said(token bigint, state text, value float8, reason text, traceback text)
    JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
), fate AS MATERIALIZED (
    SELECT ended.*, CASE
        WHEN said_state = 'complete' THEN 'COMPLETE' WHEN said_state = 'pruned' THEN 'PRUNED'
        WHEN said_state = 'failed' OR given_up THEN 'FAIL' ELSE 'WAITING' END AS becomes
    FROM ended
), valued AS (
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, value, CAST('FINITE' AS trialvaluetype) FROM fate WHERE becomes = 'COMPLETE'
    UNION ALL
    SELECT fate.trial_id, 0, point.intermediate_value, 'FINITE'
    FROM fate CROSS JOIN LATERAL (
        SELECT intermediate_value, intermediate_value_type FROM trial_intermediate_values
        WHERE trial_intermediate_values.trial_id = fate.trial_id ORDER BY step DESC LIMIT 1
    ) AS point
    WHERE fate.becomes = 'PRUNED' AND point.intermediate_value_type = 'FINITE'
    ON CONFLICT (trial_id, objective) DO UPDATE
    SET value = excluded.value, value_type = excluded.value_type
), noted AS (
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, 'reason', CAST(to_json(reason) AS text) FROM fate
    WHERE becomes = 'FAIL' AND reason IS NOT NULL
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
), moved AS (
    UPDATE trials AS trial
    SET state = CAST(fate.becomes AS trialstate),
        datetime_complete = CASE WHEN fate.becomes = 'WAITING' THEN trial.datetime_complete ELSE {NOW} END
    FROM fate WHERE trial.trial_id = fate.trial_id
), unmarked AS (
    UPDATE trial_user_attributes AS mark SET value_json = 'null' FROM fate
    WHERE mark.trial_id = fate.trial_id AND mark.key = '{SEED_KEY}' AND fate.becomes = 'WAITING'
), closed AS (
    UPDATE shoal.attempts AS attempt
    SET state = CASE fate.said_state WHEN 'retry' THEN 'failed' ELSE fate.said_state END,
        reason = fate.reason, traceback = fate.traceback, ended_at = clock_timestamp()
    FROM fate WHERE attempt.id = fate.id
)
{EVENT}
SELECT CASE WHEN attempt.given_up THEN 'given_up' WHEN said_state = 'retry' THEN 'requeued'
            WHEN said_state = 'complete' THEN 'completed' ELSE said_state END,
       {OF_ATTEMPT},
       CASE WHEN attempt.reason IS NOT NULL THEN json_build_object('reason', attempt.reason) END
FROM fate AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
ORDER BY attempt.token;
"""  # noqa: S608

# Before END, while the attempts still run. A winner's seed is read once: of a copy of its trial that
# another client put in the queue nothing is stored.
READ = f"""
INSERT INTO shoal.test_readings
    (experiment_id, study_name, trial_id, trial_number, config, seed, metrics, validation, epochs, images,
     seconds, purpose, retraining_trial_id)
SELECT study.experiment_id, said.study_name, said.trial_id, said.trial_number, said.config, said.seed,
       said.metrics, said.validation, said.epochs, said.images, said.seconds, 'retraining', attempt.trial_id
FROM json_to_recordset(CAST(%(readings)s AS json)) AS said(
    token bigint, study_name text, trial_id int, trial_number int, config json, seed bigint, metrics json,
    validation json, epochs int, images int, seconds float8)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
ORDER BY said.trial_id, said.seed
ON CONFLICT (trial_id, seed) WHERE purpose = 'retraining' DO NOTHING;
"""  # noqa: S608

REFUSED = f"""
WITH refused AS (
    SELECT said.token, CASE
        WHEN attempt.id IS NULL THEN 'there is no such lease'
        WHEN attempt.state = 'lost' THEN 'the lease was taken back: ' || attempt.reason
        WHEN attempt.state <> 'running' THEN 'the attempt has ended: ' || attempt.state
        WHEN trial.trial_id IS NULL THEN 'the trial was deleted'
        WHEN trial.state <> 'RUNNING' THEN 'somebody else made the trial ' || trial.state
        WHEN attempt.deadline <= clock_timestamp() THEN 'the lease ran out'
        ELSE 'epoch ' || said.first_step || ' after epoch ' || attempt.last_step END AS reason
    FROM json_to_recordset(CAST(%(said)s AS json)) AS said(token bigint, first_step int)
    LEFT JOIN shoal.attempts AS attempt ON attempt.token = said.token
    LEFT JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    WHERE attempt.last_write IS DISTINCT FROM %(write)s
), told AS (
    {EVENT}
    SELECT 'refused', study.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number,
           attempt.number, refused.token, attempt.worker_id, %(write)s,
           json_build_object('reason', refused.reason)
    FROM refused LEFT JOIN shoal.attempts AS attempt ON attempt.token = refused.token
    LEFT JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    ORDER BY refused.token
)
SELECT token, reason FROM refused
UNION ALL
SELECT token, NULL FROM shoal.events WHERE write = %(write)s AND kind = 'given_up'
"""  # noqa: S608
