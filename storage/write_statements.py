"""The statements of `BatchedLedger.write`, in the driver's notation; those that are needed make one message.

As in `storage.ledger_statements`, which has those of a claim: several in one round trip, locks in one order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from storage.ledger_statements import EVENT, NOW, OF_ATTEMPT, SEED_KEY

if TYPE_CHECKING:
    from storage.ledger import EndState

TOKENS = "CAST(%(tokens)s AS bigint[])"

HOLD = f"""
SELECT count(*) FROM (
    SELECT FROM shoal.attempts AS attempt JOIN trials AS trial ON trial.trial_id = attempt.trial_id
    WHERE attempt.token = ANY({TOKENS}) ORDER BY attempt.trial_id
    FOR NO KEY UPDATE OF trial, attempt
) AS held;
"""

LANDED = f"""
SELECT EXISTS (SELECT FROM shoal.attempts WHERE token = ANY({TOKENS}) AND last_write = %(write)s)
    OR EXISTS (SELECT FROM shoal.events WHERE write = %(write)s)
"""
"""After HOLD: whether a write whose answer was lost had been committed."""

ANSWER = """
SELECT token, CASE kind WHEN 'refused' THEN detail ->> 'reason' END
FROM shoal.events WHERE write = %(write)s AND kind IN ('refused', 'given_up')
"""
"""What a write that was committed answered: refused leases with their reasons, given up ones without."""

# The fence. What passes it keeps its row locked, so that nobody takes the lease before we commit. An
# attempt that ends is closed here where nothing below has to find it running: to write its row once more
# would be another version of it in every index, and a check of each of its foreign keys.
FENCE = f"""
UPDATE shoal.attempts AS attempt
SET deadline = clock_timestamp() + make_interval(secs => %(ttl)s), beaten_at = clock_timestamp(),
    last_write = %(write)s, last_step = coalesce(said.last_step, attempt.last_step),
    sampler_seconds = coalesce(said.sampler_seconds, attempt.sampler_seconds),
    state = coalesce(said.closes, attempt.state), reason = coalesce(said.reason, attempt.reason),
    traceback = coalesce(said.traceback, attempt.traceback),
    ended_at = CASE WHEN said.closes IS NOT NULL THEN clock_timestamp() END
FROM json_to_recordset(CAST(%(said)s AS json))
        AS said(token bigint, first_step int, last_step int, sampler_seconds float8, closes text,
                reason text, traceback text),
     trials AS trial
WHERE attempt.token = said.token AND attempt.token = ANY({TOKENS})
  AND trial.trial_id = attempt.trial_id AND trial.state = 'RUNNING'
  AND attempt.state = 'running' AND attempt.deadline > clock_timestamp()
  AND coalesce(said.first_step > attempt.last_step, true)
  AND attempt.last_write IS DISTINCT FROM %(write)s;
"""

PASSED = f"""attempt.token = ANY({TOKENS}) AND coalesce(
        attempt.last_write = %(write)s AND attempt.xmin = CAST(pg_current_xact_id() AS xid), false)"""
"""Of a lease: that it passed the fence of this write, in this transaction.

So of a write that arrives a second time, behind the one that was sent in its place, nothing is done.
What is coalesced, the planner takes for as likely as not, else for next to impossible: then it would
look through all that was said for each lease."""

# What is there already is written over: it is of an earlier attempt, or a stranger's.
OVER_PARAMS = """ON CONFLICT (trial_id, param_name)
DO UPDATE SET param_value = excluded.param_value, distribution_json = excluded.distribution_json"""
OVER_NOTES = "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
OVER_REPORTS = """ON CONFLICT (trial_id, step) DO UPDATE
SET intermediate_value = excluded.intermediate_value,
    intermediate_value_type = excluded.intermediate_value_type"""
OVER_POINTS = """ON CONFLICT (trial_id, epoch) DO UPDATE
SET attempt = excluded.attempt, train_loss = excluded.train_loss,
    validation_loss = excluded.validation_loss, metrics = excluded.metrics,
    gradient_norm = excluded.gradient_norm, learning_rate = excluded.learning_rate,
    seconds = excluded.seconds, images_per_second = excluded.images_per_second,
    diverged = excluded.diverged, written_at = excluded.written_at"""
OVER_VALUES = """ON CONFLICT (trial_id, objective) DO UPDATE
    SET value = excluded.value, value_type = excluded.value_type"""


def of_new_trials(script: str) -> str:
    """Draws of trials that have no values yet: a violated UNIQUE where that is not so.

    To look for something to write over, row by row, is a fifth of what an INSERT costs.
    """
    return script.replace(OVER_PARAMS, "").replace(f"{OVER_NOTES};", ";")


def of_first_attempts(script: str) -> str:
    """The same for reports and values of trials that no earlier attempt has reported or ended."""
    for clause in (OVER_REPORTS, OVER_POINTS, OVER_VALUES):
        script = script.replace(clause, "")
    return script


DRAW = f"""
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT attempt.trial_id, kinds.name, said.value, kinds.distribution
FROM unnest(%(draw_tokens)s::bigint[], %(draw_kinds)s::int[], %(draw_values)s::float8[])
        WITH ORDINALITY AS said(token, kind, value, place)
JOIN unnest(%(kind_names)s::text[], %(kind_distributions)s::text[])
        WITH ORDINALITY AS kinds(name, distribution, kind) USING (kind)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
ORDER BY attempt.trial_id, said.place
{OVER_PARAMS};
{EVENT}
SELECT 'drawn', {OF_ATTEMPT}, json_build_object('sampler_seconds', attempt.sampler_seconds)
FROM shoal.attempts AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE attempt.token = ANY(CAST(%(drawn)s AS bigint[])) AND {PASSED}
ORDER BY attempt.token;
"""

NOTE = f"""
INSERT INTO trial_user_attributes (trial_id, key, value_json)
SELECT attempt.trial_id, said.key, said.value
FROM json_to_recordset(CAST(%(notes)s AS json)) AS said(token bigint, key text, value text)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
ORDER BY attempt.trial_id
{OVER_NOTES};
"""

SAID_EPOCHS = f"""
SELECT said.*, attempt.trial_id, attempt.number, attempt.study_id, attempt.trial_number,
       attempt.ended_at
FROM json_to_recordset(CAST(%(epochs)s AS json)) AS said(
    token bigint, epoch int, train_loss float8, validation_loss float8, metrics json,
    gradient_norm float8, learning_rate float8, seconds float8, images_per_second float8,
    diverged boolean, value float8)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
"""

REPORT = f"""
INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
SELECT trial_id, epoch, value, 'FINITE' FROM ({SAID_EPOCHS}) AS said ORDER BY trial_id, epoch
{OVER_REPORTS};
"""

POINTS = f"""
INSERT INTO shoal.epochs
    (trial_id, epoch, attempt, study_id, trial_number, train_loss, validation_loss, metrics,
     gradient_norm, learning_rate, seconds, images_per_second, diverged, written_at)
SELECT trial_id, epoch, number, study_id, trial_number, train_loss, validation_loss, metrics,
       gradient_norm, learning_rate, seconds, images_per_second, diverged,
       least(clock_timestamp(), ended_at)
FROM ({SAID_EPOCHS}) AS said ORDER BY trial_id, epoch
{OVER_POINTS};
"""

# A trial that went on from before an epoch which an earlier attempt had reported may end there:
# then what came after is no part of its curve.
CUT = f"""
SELECT shoal.cut_curves(array_agg(attempt.token ORDER BY attempt.trial_id), true)
FROM json_to_recordset(CAST(%(endings)s AS json)) AS said(token bigint, state text)
JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
WHERE said.state IN ('complete', 'pruned') AND attempt.number > 1
HAVING count(*) > 0;
"""

ENDED = f"""
WITH ended AS MATERIALIZED (
    SELECT attempt.id, attempt.study_id, attempt.trial_id, attempt.trial_number, attempt.number,
           attempt.token, attempt.worker_id, said.state AS said_state, said.value, said.reason,
           said.traceback,
           said.state = 'retry' AND 1 + (
               SELECT count(*) FROM shoal.attempts AS earlier
               WHERE earlier.trial_id = attempt.trial_id AND earlier.state IN ('failed', 'lost')
                 AND earlier.id <> attempt.id
           ) >= %(most)s AS given_up
    FROM json_to_recordset(CAST(%(endings)s AS json))
            AS said(token bigint, state text, value float8, reason text, traceback text)
    JOIN shoal.attempts AS attempt ON attempt.token = said.token AND {PASSED}
), fate AS MATERIALIZED (
    SELECT ended.*, CASE
        WHEN said_state = 'complete' THEN 'COMPLETE' WHEN said_state = 'pruned' THEN 'PRUNED'
        WHEN said_state = 'failed' OR given_up THEN 'FAIL' ELSE 'WAITING' END AS becomes
    FROM ended
), moved AS (
    UPDATE trials AS trial
    SET state = CAST(fate.becomes AS trialstate),
        datetime_complete = CASE WHEN fate.becomes = 'WAITING' THEN trial.datetime_complete ELSE {NOW} END
    FROM fate WHERE trial.trial_id = fate.trial_id
)"""

COMPLETED = f""", completed AS (
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT trial_id, 0, value, 'FINITE' FROM fate WHERE becomes = 'COMPLETE'
    {OVER_VALUES}
)"""

# Its value is its last report, as Optuna's `tell` has it (optuna/study/_tell.py).
PRUNED = f""", pruned AS (
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT fate.trial_id, 0, point.intermediate_value, 'FINITE'
    FROM fate CROSS JOIN LATERAL (
        SELECT intermediate_value, intermediate_value_type FROM trial_intermediate_values
        WHERE trial_intermediate_values.trial_id = fate.trial_id ORDER BY step DESC LIMIT 1
    ) AS point
    WHERE fate.becomes = 'PRUNED' AND point.intermediate_value_type = 'FINITE'
    {OVER_VALUES}
)"""

FAILED = """, noted AS (
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, 'reason', CAST(to_json(reason) AS text) FROM fate
    WHERE becomes = 'FAIL' AND reason IS NOT NULL
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
)"""

WAITING = f""", unmarked AS (
    UPDATE trial_user_attributes SET value_json = 'null'
    WHERE trial_id = ANY(ARRAY(SELECT trial_id FROM fate WHERE becomes = 'WAITING'))
      AND key = '{SEED_KEY}'
)"""

CLOSED = """, closed AS (
    UPDATE shoal.attempts AS attempt
    SET state = CASE fate.said_state WHEN 'retry' THEN 'failed' ELSE fate.said_state END,
        reason = fate.reason, traceback = fate.traceback, ended_at = clock_timestamp()
    FROM fate WHERE attempt.id = fate.id
)"""

TOLD = f"""
{EVENT}
SELECT CASE WHEN attempt.given_up THEN 'given_up' WHEN said_state = 'retry' THEN 'requeued'
            WHEN said_state = 'complete' THEN 'completed' ELSE said_state END,
       {OF_ATTEMPT},
       CASE WHEN attempt.reason IS NOT NULL THEN json_build_object('reason', attempt.reason) END
FROM fate AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
ORDER BY attempt.token;
"""


def end(states: Collection[EndState], *, closes: bool) -> str:
    """The end of trials that are said to end in these states, with what that takes and no more.

    `closes`: their attempts as well, where the fence has not closed them.
    """
    parts = {
        COMPLETED: "complete" in states,
        PRUNED: "pruned" in states,
        FAILED: "failed" in states or "retry" in states,
        WAITING: "released" in states or "retry" in states,
        CLOSED: closes,
    }
    return ENDED + "".join(part for part, wanted in parts.items() if wanted) + TOLD


# Before the end of trials. A winner's seed is read once: of a copy of its trial that
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
"""

REFUSALS_TOLD = f"""), told AS (
    {EVENT}
    SELECT 'refused', study.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number,
           attempt.number, refused.token, attempt.worker_id, %(write)s,
           json_build_object('reason', refused.reason)
    FROM refused LEFT JOIN shoal.attempts AS attempt ON attempt.token = refused.token
    LEFT JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    ORDER BY refused.token
)
SELECT token, reason FROM refused
"""
"""The end of a statement that begins with `refused`: tokens and reasons go into the history, and out."""

# Mostly nothing is refused; then no table is looked through.
REFUSED = f"""
WITH kept_out AS MATERIALIZED (
    SELECT token FROM unnest({TOKENS}) AS token
    EXCEPT SELECT token FROM shoal.attempts WHERE token = ANY({TOKENS}) AND last_write = %(write)s
), refused AS (
    SELECT said.token, CASE
        WHEN attempt.id IS NULL THEN 'there is no such lease'
        WHEN attempt.state = 'lost' THEN 'the lease was taken back: ' || attempt.reason
        WHEN attempt.state <> 'running' THEN 'the attempt has ended: ' || attempt.state
        WHEN trial.trial_id IS NULL THEN 'the trial was deleted'
        WHEN trial.state <> 'RUNNING' THEN 'somebody else made the trial ' || trial.state
        WHEN attempt.deadline <= clock_timestamp() THEN 'the lease ran out'
        ELSE 'epoch ' || said.first_step || ' after epoch ' || attempt.last_step END AS reason
    FROM kept_out JOIN json_to_recordset(CAST(%(said)s AS json)) AS said(token bigint, first_step int)
        USING (token)
    LEFT JOIN shoal.attempts AS attempt ON attempt.token = said.token
    LEFT JOIN trials AS trial ON trial.trial_id = attempt.trial_id
{REFUSALS_TOLD}UNION ALL
SELECT token, NULL FROM shoal.events WHERE write = %(write)s AND kind = 'given_up'
"""
