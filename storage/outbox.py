"""Notes that wait to be sent: stored in the transaction that they tell of, sent at least once.

Whoever sends one takes it for a while first. A process that dies between sending and noting that has
it sent again, under the same id; one that dies before loses nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database
from storage.schedule_records import NoticeRecord
from storage.schedule_statements import CLOCK
from storage.values import storable

HOLD_SECONDS = 120.0
"""For which a note is left to whoever sends it; longer than sending can take."""
ERROR_LENGTH = 500

STORE = """
INSERT INTO shoal.notices (id, firing_id, body, next_try_at, created_at)
VALUES (:id, :firing, :body, :now, :now) ON CONFLICT (firing_id) DO NOTHING
"""

TAKE = f"""
UPDATE shoal.notices AS notice SET tries = tries + 1, next_try_at = {CLOCK} + :hold
FROM shoal.firings AS firing JOIN shoal.schedules AS schedule ON schedule.id = firing.schedule_id
WHERE firing.id = notice.firing_id AND notice.id = (
    SELECT id FROM shoal.notices
    WHERE sent_at IS NULL AND given_up_at IS NULL AND next_try_at <= {CLOCK}
    ORDER BY next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING notice.id, notice.firing_id, notice.body, notice.tries, notice.created_at,
          schedule.webhook, schedule.webhook_format, {CLOCK} AS now
"""  # noqa: S608 (here and below: only our own constants are put in)

SENT = f"UPDATE shoal.notices SET sent_at = {CLOCK}, last_error = NULL WHERE id = :id AND sent_at IS NULL"  # noqa: S608

# A try that was overtaken by a later one has nothing to say.
FAILED = f"""
UPDATE shoal.notices
SET last_error = :error, next_try_at = {CLOCK} + :wait,
    given_up_at = CASE WHEN :final THEN {CLOCK} END
WHERE id = :id AND tries = :tries AND sent_at IS NULL AND given_up_at IS NULL
"""  # noqa: S608

STATE = """
SELECT notice.firing_id, notice.sent_at, notice.given_up_at, notice.tries, notice.last_error
FROM shoal.notices AS notice JOIN shoal.firings AS firing ON firing.id = notice.firing_id
WHERE firing.schedule_id = :schedule
"""

WAITING = f"""
SELECT count(*) FROM shoal.notices
WHERE sent_at IS NULL AND given_up_at IS NULL AND next_try_at <= {CLOCK} + :within
"""  # noqa: S608


def store(connection: Connection, firing_id: int, now: datetime, body: Callable[[str], str | None]) -> None:
    """Put a note into the outbox, in the caller's transaction; `body` makes it, given its id."""
    id = uuid.uuid4().hex
    made = body(id)
    if made is not None:
        connection.execute(text(STORE), {"id": id, "firing": firing_id, "body": storable(made), "now": now})


class Outbox:
    """Takes notes and notes what became of them. May be shared by threads."""

    def __init__(self, database: Database, *, ahead: timedelta = timedelta(0)) -> None:
        """`ahead` moves the clock, for tests."""
        self._database = database
        self.ahead = ahead

    def take(self) -> NoticeRecord | None:
        """A note that is due, held for `HOLD_SECONDS`; None if there is none."""
        with self._database.begin() as connection:
            values = {"ahead": self.ahead, "hold": timedelta(seconds=HOLD_SECONDS)}
            row = connection.execute(text(TAKE), values).mappings().one_or_none()
            return None if row is None else NoticeRecord(**row)

    def sent(self, notice: NoticeRecord) -> None:
        """It arrived."""
        self._execute(SENT, id=notice.id, ahead=self.ahead)

    def failed(self, notice: NoticeRecord, error: str, *, wait_seconds: float, final: bool = False) -> None:
        """It did not; to be tried again after that time, or never. `error` holds no secret."""
        self._execute(
            FAILED,
            id=notice.id,
            tries=notice.tries,
            error=storable(error[:ERROR_LENGTH]),
            wait=timedelta(seconds=wait_seconds),
            final=final,
            ahead=self.ahead,
        )

    def of_schedule(self, schedule_id: int) -> dict[int, dict[str, Any]]:
        """Firing → what became of the note about it: sent_at, given_up_at, tries, last_error."""
        with self._database.begin() as connection:
            rows = connection.execute(text(STATE), {"schedule": schedule_id}).mappings().all()
        return {row["firing_id"]: {k: v for k, v in row.items() if k != "firing_id"} for row in rows}

    def waiting(self, *, within_seconds: float) -> int:
        """Notes that have not arrived, are not given up, and are to be tried again within that time."""
        values = {"ahead": self.ahead, "within": timedelta(seconds=within_seconds)}
        with self._database.begin() as connection:
            return int(connection.execute(text(WAITING), values).scalar_one())

    def _execute(self, statement: str, **values: Any) -> None:
        def work(_unsure: bool) -> None:
            with self._database.begin() as connection:
                connection.execute(text(statement), values)

        self._database.retrying(work)
