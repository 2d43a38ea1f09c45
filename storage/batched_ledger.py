"""The ledger over Optuna's own tables: a whole pool of slots in one round trip.

Every method sends its statements as one message, which Postgres runs as one transaction. A number
drawn for each call is stored with what it changes: where a connection breaks at the commit, the
call is sent again and finds by that number whether it was done.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, IntegrityError

from storage import ledger_statements as sql
from storage import recovery_statements as recovery
from storage import write_statements as writes
from storage.crowds import HASTE, in_line
from storage.database import Database
from storage.errors import DatabaseBusy, StudyNotFound, ValueRefused
from storage.failpoints import failpoint
from storage.ledger import (
    MAX_ATTEMPTS,
    Draw,
    Ending,
    EpochWrite,
    Expired,
    Lease,
    Retried,
    Scalar,
    Written,
    lease_seconds,
)
from storage.processes import this_process
from storage.queries import decode_parameter
from storage.sqlstates import UNIQUE_VIOLATION, optuna_tables_missing, sqlstate
from storage.values import finite, json_text, numbers, storable

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
        said = said_by_token(beats, draws, epochs, endings)
        if not said:
            return Written()
        cut = any(ending.lease.last_step is not None for ending in endings)
        if not cut:  # only running attempts are cut, so those are closed afterwards
            for ending in endings:
                said[ending.lease.token] |= _closing(ending)
        values: dict[str, Any] = {
            "tokens": numbers(said),
            "said": json.dumps(list(said.values())),
            "ttl": lease_seconds(),
            "most": MAX_ATTEMPTS,
            "write": new_number(),
        }
        script = writes.HOLD + writes.FENCE
        if draws:
            values |= _draws(draws) | {"drawn": numbers(draw.lease.token for draw in draws)}
            script += writes.DRAW
        notes = _notes(draws, endings)
        if notes:
            values["notes"] = json.dumps(notes)
            script += writes.NOTE
        if epochs:
            values["epochs"] = json.dumps(epoch_rows(epochs))
            script += writes.REPORT + writes.POINTS
        if endings:
            values["endings"] = json.dumps([_ending(ending) for ending in endings])
            readings = reading_rows(endings)
            if readings:
                values["readings"] = json.dumps(readings)
                script += writes.READ
            if cut:
                script += writes.CUT
            script += writes.end({ending.state for ending in endings}, closes=cut)
        script += writes.REFUSED
        plain = self._unless_written(script, draws, epochs, endings)

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

    def _unless_written(
        self, script: str, draws: Sequence[Draw], epochs: Sequence[EpochWrite], endings: Sequence[Ending]
    ) -> str:
        """The script without looking for what may be there already, as far as nothing can be."""
        drawn = {draw.lease.token for draw in draws}
        if drawn <= self._blank and not any(ending.attributes for ending in endings):
            script = writes.of_new_trials(script)
        self._blank -= drawn
        saying: list[EpochWrite | Ending] = [*epochs, *endings]
        if all(said.lease.attempt == 1 for said in saying):
            script = writes.of_first_attempts(script)
        return script

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


def said_by_token(
    beats: Iterable[Lease], draws: Iterable[Draw], epochs: Iterable[EpochWrite], endings: Iterable[Ending]
) -> dict[int, dict[str, Any]]:
    """What the fence is asked, by token. Raises `ValueRefused` for what contradicts itself."""
    speaking: list[Draw | EpochWrite | Ending] = [*draws, *epochs, *endings]
    leases = [*beats, *(said.lease for said in speaking)]
    asked: dict[int, dict[str, Any]] = {lease.token: {"token": lease.token} for lease in leases}
    for draw in draws:
        asked[draw.lease.token]["sampler_seconds"] = finite(draw.sampler_seconds, "the sampler's seconds")
    steps: dict[int, list[int]] = defaultdict(list)
    for epoch in epochs:
        steps[epoch.lease.token].append(int(epoch.report.epoch))
    for token, of_trial in steps.items():
        if any(later <= earlier for earlier, later in pairwise(of_trial)):
            raise ValueRefused(f"epochs of one trial must increase, not go {of_trial}")
        asked[token] |= {"first_step": of_trial[0], "last_step": of_trial[-1]}
    ended = [ending.lease.token for ending in endings]
    if len(set(ended)) != len(ended):
        raise ValueRefused("a trial ends once")
    return asked


def _draws(draws: Iterable[Draw]) -> dict[str, Any]:
    """The parameters of draws, as arrays; a parameter and its distribution, which a pool shares, once."""
    from optuna.distributions import distribution_to_json

    kinds: dict[tuple[str, int], tuple[int, str]] = {}
    rows = []
    for draw in draws:
        for name in draw.values:
            distribution = draw.distributions[name]
            key = name, id(distribution)
            if (kind := kinds.get(key)) is None:
                kind = kinds[key] = len(kinds) + 1, distribution_to_json(distribution)
            rows.append((draw.lease.token, kind[0], stored_parameter(draw, name)))
    return {
        "draw_tokens": numbers(token for token, _, _ in rows),
        "draw_kinds": numbers(kind for _, kind, _ in rows),
        "draw_values": numbers(value for _, _, value in rows),
        "kind_names": [name for name, _ in kinds],
        "kind_distributions": [text for _, text in kinds.values()],
    }


def stored_parameter(draw: Draw, name: str) -> float:
    """A parameter as Optuna stores it. Raises `ValueRefused` for one outside of its distribution."""
    try:
        value = float(draw.distributions[name].to_internal_repr(draw.values[name]))
    except ValueError as error:
        message = f"{name} = {draw.values[name]!r} is none of its values: {error}"
    else:
        return finite(value, name)
    raise ValueRefused(message)


def _notes(draws: Sequence[Draw], endings: Sequence[Ending]) -> list[dict[str, Any]]:
    """The attributes to set; of two for one key the later."""
    notes: dict[tuple[int, str], Scalar] = {}
    noting: list[Draw | Ending] = [*draws, *endings]
    for said in noting:
        notes |= {(said.lease.token, key): value for key, value in said.attributes.items()}
    return [{"token": token, "key": key, "value": json_text(value)} for (token, key), value in notes.items()]


def epoch_rows(epochs: Iterable[EpochWrite]) -> list[dict[str, Any]]:
    """Epochs for a statement. Raises `ValueRefused` for a number that is not finite."""
    return [_epoch(write) for write in epochs]


def _epoch(write: EpochWrite) -> dict[str, Any]:
    report = write.report
    row: dict[str, Any] = {
        "token": write.lease.token,
        "epoch": int(report.epoch),
        "value": finite(write.value, "the value of an epoch"),
        "diverged": bool(report.diverged),
        "metrics": {name: finite(value, name) for name, value in report.metrics.items()},
    }
    for name in ("learning_rate", "seconds", "images_per_second"):
        row[name] = finite(getattr(report, name), name)
    for name in ("train_loss", "validation_loss", "gradient_norm"):
        value = getattr(report, name)
        row[name] = None if value is None else finite(value, name)
    return row


def _closing(ending: Ending) -> dict[str, Any]:
    """How an attempt ends, for the fence."""
    check_ending(ending)
    return {
        "closes": "failed" if ending.state == "retry" else ending.state,
        "reason": storable(ending.reason),
        "traceback": storable(ending.traceback),
    }


def _ending(ending: Ending) -> dict[str, Any]:
    check_ending(ending)
    return {
        "token": ending.lease.token,
        "state": ending.state,
        "value": None if ending.value is None else float(ending.value),
        "reason": storable(ending.reason),
        "traceback": storable(ending.traceback),
    }


def reading_rows(endings: Iterable[Ending]) -> list[dict[str, Any]]:
    """Readings of the test set for a statement. Raises `ValueRefused` for a number that is not finite."""
    return [
        {
            "token": ending.lease.token,
            "study_name": read.study_name,
            "trial_id": read.trial_id,
            "trial_number": read.trial_number,
            "config": json.loads(json_text(dict(read.config))),
            "seed": read.seed,
            "metrics": {
                name: finite(value, f"{name} on the test set") for name, value in read.metrics.items()
            },
            "validation": {name: finite(value, name) for name, value in read.validation.items()},
            "epochs": int(read.epochs),
            "images": int(read.images),
            "seconds": finite(read.seconds, "the seconds of a reading"),
        }
        for ending in endings
        if (read := ending.reading) is not None
    ]


def check_ending(ending: Ending) -> None:
    """Raises `ValueRefused` for a complete trial without a finite value, or a failure without a reason."""
    if ending.reading is not None and ending.state != "complete":
        raise ValueRefused("only a complete trial reads the test set")
    if ending.state == "complete":
        if ending.value is None:
            raise ValueRefused("a complete trial has a value")
        finite(ending.value, "the value of a trial")
    elif ending.state in ("failed", "retry") and not ending.reason:
        raise ValueRefused(f"a trial that ends as {ending.state} has a reason")
