"""The ledger over Optuna's own tables: a whole pool of slots in one round trip.

Every method sends its statements as one message, which Postgres runs as one transaction. A number
drawn for each call is stored with what it changes: where a connection breaks at the commit, the
call is sent again and finds by that number whether it was done.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, IntegrityError

from storage import ledger_statements as sql
from storage import recovery_statements as recovery
from storage import write_statements as writes
from storage.crowds import HASTE, in_line
from storage.database import Database
from storage.errors import DatabaseBusy, StudyNotFound
from storage.failpoints import failpoint
from storage.ledger import (
    MAX_ATTEMPTS,
    Draw,
    Ending,
    EpochWrite,
    Expired,
    Lease,
    Retried,
    Written,
    lease_seconds,
)
from storage.processes import this_process
from storage.queries import decode_parameter
from storage.sqlstates import UNIQUE_VIOLATION, optuna_tables_missing, sqlstate
from storage.values import json_text, storable
from storage.write_messages import message_of, unless_written

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

GIVEN_UP = f"{MAX_ATTEMPTS} workers ended while they ran this trial"


class BatchedLedger:
    """See `storage.ledger.Ledger`. For a database whose schema of Optuna's we know."""

    def __init__(self, database: Database, storage: BaseStorage | None = None) -> None:
        """`storage` is not used: the ledger writes the tables that it reads."""
        self.database = database
        self._storage = storage
        self._blank: set[int] = set()
        """Tokens of new trials that were claimed here and not drawn yet."""

    def register(self, name: str, told: Mapping[str, Any] | None = None) -> int:
        values = {"name": storable(name), **this_process().as_values(), "write": new_number()}
        values["told"] = json_text({"name": values["name"], **(told or {})})
        return int(self.database.retrying(lambda _unsure: self.database.script(sql.REGISTER, values))[0][0])

    def retire(self, worker_id: int) -> None:
        values = {"worker": worker_id, "write": new_number()}
        script = recovery.HOLD_WORKERS_TRIALS + recovery.RELEASE + recovery.RETIRE
        self.database.retrying(lambda _unsure: self.database.script(script, values))

    def claim(
        self,
        study_name: str,
        worker_id: int,
        *,
        waiting: int,
        new: int,
        of: int | None = None,
        among: Collection[int] | None = None,
    ) -> list[Lease]:
        values = {
            "study": study_name,
            "worker": worker_id,
            "waiting": waiting,
            "new": new,
            "of": of,
            "among": None if among is None else list(among),
            "ttl": lease_seconds(),
            "write": new_number(),
        }
        script = sql.ONE_CLAIM_AT_A_TIME
        script += sql.LOCK_STUDY if new else ""
        script += sql.TAKE if waiting else ""
        script += sql.MAKE if new else ""
        given = sql.LEASES if waiting else sql.NEW_LEASES
        script += sql.CLAIMED + given

        def claim(unsure: bool) -> list[Any]:
            if unsure:
                rows = self.database.script(sql.ONE_CLAIM_AT_A_TIME + given, values)
                if rows[0].trial_id is not None:
                    return rows
            try:
                return self.database.script(script, values)
            except DatabaseBusy as busy:
                if busy.waited_for_lock:
                    return []
                raise

        try:
            rows = self.database.retrying(claim)
        except DBAPIError as error:
            if not optuna_tables_missing(error):
                raise
            raise StudyNotFound(f"Optuna's tables hold no study {study_name!r}: there are none") from None
        failpoint("ledger.claim.committed")
        if rows and not rows[0].known:
            raise StudyNotFound(f"no experiment holds a study {study_name!r}, or Optuna's tables don't")
        leases = [_lease(study_name, row) for row in rows if row.trial_id is not None]
        if not waiting:
            self._blank = {lease.token for lease in leases}
        return leases

    def write(
        self,
        *,
        beats: Collection[Lease] = (),
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Written:
        message = message_of(beats, draws, epochs, endings)
        if message is None:
            return Written()
        script = message.script
        values = message.values | {"ttl": lease_seconds(), "most": MAX_ATTEMPTS, "write": new_number()}
        plain = unless_written(script, draws, epochs, endings, blank=self._blank)
        self._blank -= {draw.lease.token for draw in draws}

        def write(unsure: bool) -> list[Any]:
            failpoint("ledger.write.before")
            if unsure and self.database.script(writes.HOLD + writes.LANDED, values)[0][0]:
                return self.database.script(writes.ANSWER, values)
            if plain != script:
                try:
                    return self.database.script(plain, values)
                except IntegrityError as error:  # a stranger writes the same trials
                    if sqlstate(error) != UNIQUE_VIOLATION:
                        raise
            return self.database.script(script, values)

        with in_line(HASTE):
            rows = self.database.retrying(write)
        failpoint("ledger.write.committed")
        return Written(
            refused={token: reason for token, reason in rows if reason is not None},
            given_up=frozenset(token for token, reason in rows if reason is None),
        )

    def expire(self, experiment_id: int, *, dead_workers: Collection[int] = ()) -> list[Expired]:
        values = {
            "experiment": experiment_id,
            "dead": list(dead_workers),
            "most": MAX_ATTEMPTS,
            "reason": GIVEN_UP,
            "write": new_number(),
        }
        rows = self._unless_missing(recovery.EXPIRE + recovery.BURY + recovery.EXPIRED, values)
        failpoint("ledger.expire.committed")
        return [
            Expired(
                study_name=study,
                trial_id=trial_id,
                number=number,
                attempt=attempt,
                worker=worker,
                given_up=given_up,
            )
            for study, trial_id, number, attempt, worker, given_up in rows
        ]

    def retry_failed(self, experiment_id: int) -> list[Retried]:
        values = {"experiment": experiment_id, "write": new_number()}
        rows = self._unless_missing(recovery.LOCK_STUDIES + recovery.RETRY + recovery.RETRIED, values)
        failpoint("ledger.retry.committed")
        return [Retried(study_name=study, number=old, new_number=new) for study, old, new in rows]

    def _unless_missing(self, script: str, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a script; none where nobody has opened Optuna's storage yet."""
        try:
            return self.database.retrying(lambda _unsure: self.database.script(script, values))
        except DBAPIError as error:
            if optuna_tables_missing(error):
                return []
            raise


def new_number() -> int:
    """What names one call, for as long as it may be sent again."""
    return random.SystemRandom().getrandbits(62) + 1


def _lease(study_name: str, row: Any) -> Lease:
    _known, trial_id, number, attempt, token, deadline, params, fixed, attributes, last_step = row
    return Lease(
        study_name=study_name,
        trial_id=trial_id,
        number=number,
        attempt=attempt,
        token=token,
        deadline=deadline,
        params={name: decode_parameter(value, kind) for name, value, kind in params or ()},
        fixed=json.loads(fixed) if fixed is not None else {},
        attributes={key: json.loads(value) for key, value in (attributes or {}).items()},
        last_step=last_step,
    )
