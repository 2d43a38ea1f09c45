"""After a restore: nothing that ran before it may write into what was restored.

Who ran then knows tokens, trials and workers by number. The restored database would give the same numbers
to others, and take the old ones' writes for theirs. So all numbers begin anew, far from any that the other
database can have given, leases that ran are given back, and the workers that held them are over. A trial
that is given back has lost no attempt: it was not its fault.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, text

from storage.ledger_statements import EVENT, SEED_KEY

REASON = "the database was restored from a backup"

# A million for each second since 1970, and its part for a part of one: later than any restore before,
# wherever the backup is from, if no more than a million are given in a second. Below 2**53 for whoever reads
# them as floats.
JUMP_TOKENS = """
SELECT setval('shoal.lease_tokens', greatest(
    last_value + 1048576, CAST(floor(extract(epoch FROM clock_timestamp()) * 1048576) AS bigint)
)) FROM shoal.lease_tokens
"""

NUMBERS = """
SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), max_value
FROM pg_sequences
WHERE schemaname IN ('shoal', 'public') AND (schemaname, sequencename) <> ('shoal', 'lease_tokens')
"""

JUMP = "SELECT setval(CAST(:sequence AS regclass), :to)"

RELEASE = f"""
WITH freed AS (
    UPDATE shoal.attempts AS attempt
    SET state = 'released', reason = :reason,
        ended_at = greatest(clock_timestamp(), attempt.beaten_at, attempt.started_at)
    WHERE attempt.state = 'running'
    RETURNING attempt.*
), moved AS (
    UPDATE trials SET state = 'WAITING' FROM freed
    WHERE trials.trial_id = freed.trial_id AND trials.state = 'RUNNING'
), unmarked AS (
    UPDATE trial_user_attributes AS mark SET value_json = 'null' FROM freed
    WHERE mark.trial_id = freed.trial_id AND mark.key = '{SEED_KEY}'
), told AS (
    {EVENT}
    SELECT 'released', study.experiment_id, attempt.study_id, attempt.trial_id, attempt.trial_number,
           attempt.number, attempt.token, attempt.worker_id, NULL, json_build_object('reason', :reason)
    FROM freed AS attempt JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    ORDER BY attempt.token
)
SELECT count(*) FROM freed
"""  # noqa: S608 (only our own constants are put in)

RETIRE = """
WITH ended AS (
    UPDATE shoal.workers SET ended_at = clock_timestamp() WHERE ended_at IS NULL RETURNING id
), told AS (
    INSERT INTO shoal.events (kind, worker_id, detail)
    SELECT 'retired', id, json_build_object('reason', :reason) FROM ended ORDER BY id
)
SELECT count(*) FROM ended
"""


@dataclass(frozen=True, slots=True)
class Fenced:
    """What was under way in the backup."""

    released: int
    """Trials that ran; they wait again."""
    workers: int
    """Workers that were thought to live."""


def fence(connection: Connection) -> Fenced:
    """Do it, in the restore's own transaction; the tables have this version's form."""
    connection.execute(text(JUMP_TOKENS))
    for sequence, last, most in connection.execute(text(NUMBERS)).all():
        to = min(last + 100_000 + secrets.randbelow(900_000), last + max((most - last) // 64, 1))
        connection.execute(text(JUMP), {"sequence": sequence, "to": to})
    values = {"reason": REASON}
    released = int(connection.scalar(text(RELEASE), values) or 0)
    return Fenced(released, int(connection.scalar(text(RETIRE), values) or 0))
