"""The ledger over any Optuna storage, by its public interface: for a schema of Optuna's that we don't know.

It promises less than `storage.batched_ledger`, because Optuna's storage commits every call by
itself: a write is many transactions. While it runs, the rows of its leases are locked in our own
tables, so that nobody takes them; only a worker that stops for longer than the server lets a
transaction idle (a minute) in the middle of a write may still end a trial that was taken from it.
A worker killed in the middle may leave a trial ended whose attempt is `lost` instead of ended in
the same way, and an Optuna report whose point of the curve is missing. Nothing is left RUNNING
without a lease, and nothing is ended twice. Reports beyond a trial's end stay in Optuna's tables,
since its storage can't delete them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from storage import recovery_statements as recovery
from storage import stock_statements as stock
from storage import write_statements as sql
from storage.batched_ledger import GIVEN_UP, BatchedLedger, new_number
from storage.errors import StudyNotFound
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
from storage.stock_trials import StockTrials, repetition
from storage.values import json_text, storable
from storage.write_rows import check_ending, epoch_rows, reading_rows, said_by_token, stored_parameter

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from storage.database import Database


class Execute(Protocol):
    """Runs one statement in the driver's notation; its rows."""

    def __call__(self, statement: str, values: dict[str, Any], /) -> Sequence[Any]: ...


class StockLedger:
    """See `storage.ledger.Ledger`, and the module for what is weaker."""

    def __init__(self, database: Database, storage: BaseStorage) -> None:
        self.database = database
        self._storage = storage
        self._trials = StockTrials(storage)

    def register(self, name: str, told: Mapping[str, Any] | None = None) -> int:
        return BatchedLedger(self.database).register(name, told)

    def retire(self, worker_id: int) -> None:
        def retire(_unsure: bool) -> None:
            with self._transaction() as execute:
                held = execute(stock.HELD_BY, {"worker": worker_id})
                for attempt in held:
                    self._trials.put_back(attempt.trial_id)
                _close(execute, [_closing(attempt, "released", "its worker retired") for attempt in held])
                execute(recovery.RETIRE, {"worker": worker_id, "write": new_number()})

        self.database.retrying(retire)

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
        from optuna.trial import TrialState, create_trial

        with self._transaction() as execute:
            known = execute(stock.KNOWN, {"study": study_name})
        study_id = self._trials.study(study_name) if known else None
        if study_id is None:
            raise StudyNotFound(f"no experiment holds a study {study_name!r}, or Optuna's tables don't")
        leases: list[Lease] = []
        for trial in self._queue(study_id):
            if len(leases) == waiting:
                break
            if among is not None and trial.number not in among:
                continue
            leases += self._begin(study_name, trial._trial_id, worker_id)
        wanted = len(leases) + new
        while len(leases) < wanted and of in (None, len(self._trials.all(study_id))):
            of = None if of is None else of + 1
            # Made as waiting, and then taken from the queue as any other: so no trial is ever
            # RUNNING without a lease. Should somebody else be quicker, another is made.
            trial_id = self._trials.make(study_id, create_trial(state=TrialState.WAITING))
            failpoint("stock.claim.made")
            leases += self._begin(study_name, trial_id, worker_id)
        failpoint("ledger.claim.committed")
        return leases

    def _queue(self, study_id: int) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        found = self._trials.all(study_id, (TrialState.WAITING,))
        return sorted(found, key=lambda trial: (not trial.params, trial.number))

    def _begin(self, study_name: str, trial_id: int, worker_id: int) -> list[Lease]:
        """A lease on a waiting trial, or nothing if somebody else was quicker."""
        from optuna.trial import TrialState

        values = {
            "study": study_name,
            "trial": trial_id,
            "worker": worker_id,
            "ttl": lease_seconds(),
            "write": new_number(),
        }
        try:
            with self._transaction() as execute:
                rows = execute(stock.BEGIN, values | {"number": self._waiting(trial_id)})
                # Again, while our attempt keeps others of us away: one whom we waited for has ended it.
                self._waiting(trial_id)
        except _Taken:
            return []
        if not rows:
            return []
        failpoint("stock.claim.begun")
        taken = self._trials.set_state(trial_id, TrialState.RUNNING)
        trial = self._trials.get(trial_id)
        if not taken or trial is None:
            with self._transaction() as execute:
                _close(execute, [_closing(rows[0], "released", "somebody else was quicker")])
            return []
        row = rows[0]
        return [
            Lease(
                study_name=study_name,
                trial_id=trial_id,
                number=trial.number,
                attempt=row.number,
                token=row.token,
                deadline=row.deadline,
                params=dict(trial.params),
                fixed=dict(trial.system_attrs.get("fixed_params", {})),
                attributes=dict(trial.user_attrs),
                last_step=row.last_step,
            )
        ]

    def _waiting(self, trial_id: int) -> int:
        """The number of a trial that waits. Raises `_Taken` for any other."""
        trial = self._trials.get(trial_id)
        if trial is None or trial.state.name != "WAITING":
            raise _Taken
        return trial.number

    def write(
        self,
        *,
        beats: Collection[Lease] = (),
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Written:
        said = said_by_token(beats, draws, epochs, endings)
        points = epoch_rows(epochs)
        _check(draws, endings)
        if not said:
            return Written()
        write = new_number()
        failpoint("ledger.write.before")
        written = self.database.retrying(
            lambda _unsure: self._write(
                write, said, draws=draws, epochs=epochs, points=points, endings=endings
            )
        )
        failpoint("ledger.write.committed")
        return written

    def _write(
        self,
        write: int,
        said: dict[int, dict[str, Any]],
        *,
        draws: Sequence[Draw],
        epochs: Sequence[EpochWrite],
        points: list[dict[str, Any]],
        endings: Sequence[Ending],
    ) -> Written:
        ends = {ending.lease.token: ending for ending in endings}
        values = {"tokens": list(said), "write": write, "ttl": lease_seconds(), "most": MAX_ATTEMPTS}
        with self._transaction() as execute:
            strange = self._strangers(execute(stock.HOLD, values), ends)
            allowed = [row for token, row in said.items() if token not in strange]
            passed = {row.token: row for row in execute(stock.FENCE, {**values, "said": json.dumps(allowed)})}
            for draw in draws:
                if draw.lease.token in passed:
                    self._trials.draw(draw)
            for epoch in epochs:
                if epoch.lease.token in passed:
                    self._trials.report(epoch)
            execute(sql.POINTS, {**values, "epochs": json.dumps(points)})
            execute(stock.DRAWN, {**values, "drawn": [draw.lease.token for draw in draws]})
            if readings := reading_rows(endings):
                execute(sql.READ, {**values, "readings": json.dumps(readings)})
            closings = [self._end(passed[token], end) for token, end in ends.items() if token in passed]
            failpoint("stock.write.told")
            finished = [said["token"] for said in closings if said["state"] in ("complete", "pruned")]
            execute(stock.CUT, {"ended": finished})
            _close(execute, closings)
            rest = {
                **values,
                "said": json.dumps([row for token, row in said.items() if token not in passed]),
                "strange": json.dumps([{"token": token, "reason": why} for token, why in strange.items()]),
            }
            reasons = {row.token: row.reason for row in execute(stock.REFUSED, rest)}
        given_up = frozenset(closing["token"] for closing in closings if closing["kind"] == "given_up")
        return Written(refused=reasons, given_up=given_up)

    def _strangers(self, held: Sequence[Any], ends: dict[int, Ending]) -> dict[int, str]:
        """Leases whose trial somebody else ended or deleted. What an earlier try of ours ended is ours."""
        refused = {}
        for attempt in held:
            if attempt.state != "running":
                continue
            trial = self._trials.get(attempt.trial_id)
            if trial is None:
                refused[attempt.token] = "the trial was deleted"
            elif trial.state.name != "RUNNING" and not _is_ours(trial, ends.get(attempt.token)):
                refused[attempt.token] = f"somebody else made the trial {trial.state.name}"
        return refused

    def _end(self, attempt: Any, ending: Ending) -> dict[str, Any]:
        """End or put back a trial; what to note of its attempt."""
        from optuna.trial import TrialState

        given_up = ending.state == "retry" and attempt.spoiled + 1 >= MAX_ATTEMPTS
        self._trials.note(ending)
        if ending.state == "complete":
            self._trials.set_state(attempt.trial_id, TrialState.COMPLETE, [float(ending.value or 0.0)])
        elif ending.state == "pruned":
            self._trials.prune(attempt.trial_id)
        elif ending.state == "failed" or given_up:
            self._trials.fail(attempt.trial_id, str(ending.reason))
        else:
            self._trials.put_back(attempt.trial_id)
        kinds = {"complete": "completed", "retry": "requeued"}
        kind = "given_up" if given_up else kinds.get(ending.state, ending.state)
        state = "failed" if ending.state == "retry" else ending.state
        return _closing(attempt, state, ending.reason, kind=kind, traceback=ending.traceback)

    def expire(self, experiment_id: int, *, dead_workers: Collection[int] = ()) -> list[Expired]:
        values = {"experiment": experiment_id, "dead": list(dead_workers)}

        def expire(_unsure: bool) -> list[Expired]:
            expired, closings = [], []
            with self._transaction() as execute:
                for attempt in execute(stock.OVER, values):
                    trial = self._trials.get(attempt.trial_id)
                    ran = trial is not None and trial.state.name == "RUNNING"
                    given_up = ran and attempt.spoiled + 1 >= MAX_ATTEMPTS
                    if given_up:
                        self._trials.fail(attempt.trial_id, GIVEN_UP)
                    else:
                        self._trials.put_back(attempt.trial_id)
                    kind = "given_up" if given_up else "expired"
                    closings.append(_closing(attempt, "lost", attempt.cause, kind=kind))
                    if ran:
                        expired.append(_expired(attempt, given_up))
                _close(execute, closings)
            return expired

        expired = self.database.retrying(expire)
        failpoint("ledger.expire.committed")
        return expired

    def retry_failed(self, experiment_id: int) -> list[Retried]:
        with self._transaction() as execute:
            studies = execute(stock.STUDIES, {"experiment": experiment_id})
        retried: list[Retried] = []
        with self.database.lock(f"retry:{experiment_id}"):
            for study in studies:
                study_id = self._trials.study(study.name)
                if study_id is not None:
                    retried += self._retry_study(study, study_id)
        failpoint("ledger.retry.committed")
        return retried

    def _retry_study(self, study: Any, study_id: int) -> list[Retried]:
        from optuna.trial import TrialState

        trials = self._trials.all(study_id)
        repeated = {trial.user_attrs.get("shoal:retry_of") for trial in trials}
        retried = []
        for trial in trials:
            if trial.state != TrialState.FAIL or trial.number in repeated:
                continue
            new = self._trials.get(self._trials.make(study_id, repetition(trial)))
            if new is None:
                continue
            retried.append(Retried(study_name=study.name, number=trial.number, new_number=new.number))
            values = {
                "study": study.id,
                "trial": trial._trial_id,
                "number": trial.number,
                "detail": json.dumps({"new_number": new.number, "new_trial_id": new._trial_id}),
            }
            with self._transaction() as execute:
                execute(stock.RETRIED, values)
        return retried

    @contextmanager
    def _transaction(self) -> Iterator[Execute]:
        """A transaction on our own tables."""
        with self.database.begin() as connection:

            def execute(statement: str, values: dict[str, Any], /) -> Sequence[Any]:
                result = connection.exec_driver_sql(statement, values)
                return result.all() if result.returns_rows else ()

            yield execute


class _Taken(Exception):  # noqa: N818 (an event: somebody else was quicker)
    """A trial waits no more."""


def _check(draws: Sequence[Draw], endings: Sequence[Ending]) -> None:
    """Raises `ValueRefused` for what can't be stored, before anything is."""
    for draw in draws:
        for name in draw.values:
            stored_parameter(draw, name)
        json_text(dict(draw.attributes))
    for ending in endings:
        check_ending(ending)
        json_text(dict(ending.attributes))
    reading_rows(endings)


def _close(execute: Execute, closings: list[dict[str, Any]]) -> None:
    if closings:
        execute(stock.CLOSE, {"closings": json.dumps(closings), "write": new_number()})


def _closing(
    attempt: Any, state: str, reason: str | None, *, kind: str | None = None, traceback: str | None = None
) -> dict[str, Any]:
    return {
        "token": attempt.token,
        "state": state,
        "kind": kind or state,
        "reason": storable(reason),
        "traceback": storable(traceback),
    }


def _expired(attempt: Any, given_up: bool) -> Expired:
    return Expired(
        study_name=attempt.study,
        trial_id=attempt.trial_id,
        number=attempt.trial_number,
        attempt=attempt.number,
        worker=attempt.worker,
        given_up=given_up,
    )


def _is_ours(trial: FrozenTrial, ending: Ending | None) -> bool:
    """Whether a trial has ended just as this write says."""
    if ending is None:
        return False
    if ending.state == "retry":
        return trial.state.name in ("WAITING", "FAIL")
    words = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "released": "WAITING"}
    if trial.state.name != words[ending.state]:
        return False
    return ending.state != "complete" or trial.value == ending.value
