"""Between a worker and the database: hands out trials, stores what the worker says of them.

A worker that dies at any point leaves a trial in state RUNNING with an attempt of a worker that is
not alive; `recover` puts it back in the queue. Nothing else has to be cleaned up, because the
trial's number decides its seed, and its seed and values decide its curve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from objectives.base import EpochReport, TrialFailure, TrialStart, derive_seed
from search.study import (
    SEED_KEY,
    Asked,
    SearchStudy,
    TrialTaken,
    TrialUnusable,
    give_up,
    limits_of,
    may_ever_start,
    may_start,
    quiet_optuna,
    requeue,
)
from storage import queries
from storage.attempts import Attempts
from storage.curves import Curves
from storage.embedded import default_directory
from storage.errors import AttemptLost

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from search.spec import ExperimentSpec
    from search.study import Limits
    from storage.attempts import LiveWorker
    from storage.database import Database
    from storage.records import AbandonedTrial, ExperimentRecord, StudyProgress

MAX_ATTEMPTS = 3
"""Attempts that the machine may spoil before a trial is given up; interruptions don't count."""


class Verdict(Enum):
    """What becomes of a trial after an epoch. All but CONTINUE free its slot."""

    CONTINUE = "continue"
    PRUNE = "prune"
    FINISH = "finish"
    TAKEN = "taken"
    """Somebody else ended the trial, or gave it to another worker; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker runs, and nobody else."""

    study_name: str
    asked: Asked
    attempt: int
    start: TrialStart
    """What the engine is asked to train."""


def study_lock(study_name: str) -> str:
    """Key of the lock under which a study is counted and asked."""
    return f"study:{study_name}"


def checkpoint_folder(experiment: ExperimentRecord) -> Path:
    """Where interrupted trials of an experiment are kept on this machine.

    The name alone would not do: the same one in another database is another experiment.
    """
    birth = hashlib.sha256(f"{experiment.id} {experiment.created_at.isoformat()}".encode()).hexdigest()[:12]
    return default_directory().parent / "checkpoints" / f"{experiment.name}-{birth}"


def claim_order(progress: Iterable[StudyProgress], limits: Mapping[str, Limits]) -> list[StudyProgress]:
    """The studies in which a trial may start now, the one that is furthest behind first.

    `limits` names the studies that are to be run. "Behind" is the share of the trials that has
    started, so methods and replicates advance evenly, and a study that may run one trial at a
    time gets its next as soon as the last has ended. Decided on numbers that may be old by now:
    whether a trial does start is decided under the study's lock.
    """

    def started(row: StudyProgress) -> float:
        return (row.trials - row.waiting) / limits[row.study.name].trials

    def is_open(row: StudyProgress) -> bool:
        if row.study.name not in limits:
            return False
        most = limits[row.study.name].in_flight
        return (most is None or row.running < most) and not is_over(row, limits[row.study.name])

    # Studies that are equally far stay in the experiment's own order.
    order = {name: index for index, name in enumerate(limits)}
    return sorted(filter(is_open, progress), key=lambda row: (started(row), order[row.study.name]))


def is_over(row: StudyProgress, limits: Limits) -> bool:
    """Whether a study has begun all its trials: nothing waits, and the budget of trials is used."""
    return row.waiting == 0 and row.trials >= limits.trials


class Broker:
    """Claims trials of one experiment for one worker, and writes what happens to them.

    One thread. Errors of the database leave every method: the worker then ends, and its trials go
    back to the queue as soon as its death is seen.
    """

    def __init__(
        self,
        database: Database,
        storage: BaseStorage,
        experiment: ExperimentRecord,
        spec: ExperimentSpec,
        worker: LiveWorker,
    ) -> None:
        quiet_optuna()
        self._database = database
        self._storage = storage
        self._experiment = experiment
        self._spec = spec
        self._worker = worker
        self._attempts = Attempts(database)
        self._curves = Curves(database)
        self._checkpoints = checkpoint_folder(experiment)
        self._places = {name: (method, replicate) for method, replicate, name in spec.studies()}
        self._limits = {name: limits_of(spec, method) for method, _, name in spec.studies()}
        self._studies: dict[str, SearchStudy] = {}
        self._over: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """Whether no study will give this worker another trial.

        Trials that run elsewhere may yet come back if their worker dies: then somebody has to be
        hired again.
        """
        return len(self._over) == len(self._places)

    def claim(self) -> Claim | None:
        """A trial to run. None: not now, or (see `exhausted`) never again.

        Goes on to the next study where another worker is asking at this moment, so that an ask
        that takes long (a Gaussian process) holds up nobody.
        """
        self._worker.renew()
        for name in self._candidates():
            with self._database.lock(study_lock(name), wait=False) as held:
                if not held:
                    continue
                claim = self._claim_from(self._study(name))
                if claim is not None:
                    return claim
        return None

    def _candidates(self) -> list[str]:
        progress = queries.progress(self._database, self._experiment.id)
        self._over |= {row.study.name for row in progress if self._is_over(row)}
        limits = {name: limit for name, limit in self._limits.items() if name not in self._over}
        return [row.study.name for row in claim_order(progress, limits)]

    def _is_over(self, row: StudyProgress) -> bool:
        return row.study.name in self._limits and is_over(row, self._limits[row.study.name])

    def _claim_from(self, study: SearchStudy) -> Claim | None:
        load = study.load()
        if not may_start(load, study.limits):
            if not may_ever_start(load, study.limits):
                self._over.add(study.name)
            return None
        try:
            asked = study.ask()
        except TrialUnusable:
            return None
        attempt = self._attempts.begin(study.name, asked.trial_id, asked.number, self._worker)
        _, replicate = self._places[study.name]
        start = self._start(study, asked, replicate)
        if attempt == 1:
            study.note(asked, SEED_KEY, start.seed)
        return Claim(study.name, asked, attempt, start)

    def _start(self, study: SearchStudy, asked: Asked, replicate: int) -> TrialStart:
        checkpoint = self.checkpoint_path(study.name, asked.number)
        return TrialStart(
            trial_id=asked.trial_id,
            config=self._spec.config(asked.values),
            seed=derive_seed(self._spec.seed, replicate, asked.number),
            split_seed=derive_seed(self._spec.seed, replicate, "split"),
            checkpoint=checkpoint if checkpoint.exists() else None,
        )

    def _study(self, name: str) -> SearchStudy:
        if name not in self._studies:
            self._studies[name] = SearchStudy(self._storage, self._spec, *self._places[name])
        return self._studies[name]

    def checkpoint_path(self, study_name: str, number: int) -> Path:
        """Where an interrupted trial's state is kept until it ends."""
        method, replicate = self._places[study_name]
        return self._checkpoints / method / str(replicate) / f"{number}.pt"

    def end_epoch(self, claim: Claim, report: EpochReport, *, last: bool) -> Verdict:
        """Store an epoch and decide what becomes of the trial: curve, then report, then verdict."""
        study = self._study(claim.study_name)
        value = report.metrics[self._spec.metric]
        try:
            self._worker.renew()
            self._curves.write(claim.asked.trial_id, claim.attempt, report)
            study.report(claim.asked, report.epoch, value)
            if last or report.diverged:
                self._complete(study, claim, report, value)
                return Verdict.FINISH
            if study.should_prune(claim.asked, report.epoch):
                study.note(claim.asked, "epochs", report.epoch)
                study.prune(claim.asked)
                self._ended(claim, "pruned")
                return Verdict.PRUNE
        except (TrialTaken, AttemptLost) as taken:
            self._drop(claim, str(taken))
            return Verdict.TAKEN
        return Verdict.CONTINUE

    def _complete(self, study: SearchStudy, claim: Claim, report: EpochReport, value: float) -> None:
        study.note(claim.asked, "epochs", report.epoch)
        if report.diverged:
            study.note(claim.asked, "diverged", True)
            study.note(claim.asked, "diverged_epoch", report.epoch)
        study.complete(claim.asked, value)
        self._ended(claim, "complete")

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        """The trial raised: run it again if the machine is to blame, else it has failed."""
        study = self._study(claim.study_name)
        again = failure.retryable and self._attempts.count(claim.asked.trial_id) < MAX_ATTEMPTS
        try:
            if again:
                self._attempts.end(
                    claim.asked.trial_id, claim.attempt, "failed", failure.reason, failure.traceback
                )
                study.requeue(claim.asked)
                self._over.discard(study.name)
            else:
                study.fail(claim.asked, failure.reason)
                self._ended(claim, "failed", failure.reason, failure.traceback)
        except (TrialTaken, AttemptLost) as taken:
            self._drop(claim, str(taken))

    def release(self, claim: Claim) -> None:
        """Give an interrupted trial back; whoever claims it next goes on from its checkpoint."""
        try:
            self._attempts.end(claim.asked.trial_id, claim.attempt, "released")
        except AttemptLost:
            return
        self._study(claim.study_name).requeue(claim.asked)

    def _ended(
        self,
        claim: Claim,
        state: Literal["complete", "pruned", "failed"],
        reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        # After the trial itself: its state is the truth, the attempt's row tells how it came about.
        self._attempts.end(claim.asked.trial_id, claim.attempt, state, reason, traceback)
        self.checkpoint_path(claim.study_name, claim.asked.number).unlink(missing_ok=True)

    def _drop(self, claim: Claim, reason: str) -> None:
        with suppress(AttemptLost):
            self._attempts.end(claim.asked.trial_id, claim.attempt, "lost", reason)


def recover(
    database: Database, storage: BaseStorage, experiment: ExperimentRecord, *, interrupted: bool = False
) -> list[str]:
    """Put trials that dead workers left RUNNING back in the queue; returns a line for each.

    A trial whose workers died `MAX_ATTEMPTS` times has failed. With `interrupted`, the user ended
    the workers, and that is not held against the trials. Called by the holder of the
    experiment's lock alone; calling it again after a crash in its middle finishes the work.
    """
    attempts = Attempts(database)
    lines = []
    for study_name in sorted({trial.study_name for trial in attempts.abandoned(experiment.id)}):
        # A trial that is just being claimed looks abandoned to who doesn't hold the lock.
        with database.lock(study_lock(study_name)):
            for trial in attempts.abandoned(experiment.id):
                if trial.study_name == study_name:
                    lines += _recover_trial(attempts, storage, trial, "released" if interrupted else "lost")
    return lines


def _recover_trial(
    attempts: Attempts, storage: BaseStorage, trial: AbandonedTrial, state: Literal["released", "lost"]
) -> list[str]:
    name = f"trial {trial.trial_number} of {trial.study_name}"
    if trial.attempt is not None and trial.attempt.state == "running":
        with suppress(AttemptLost):
            attempts.end(trial.trial_id, trial.attempt.number, state, "its worker ended")
    if attempts.count(trial.trial_id) >= MAX_ATTEMPTS:
        reason = f"{MAX_ATTEMPTS} workers ended while they ran this trial"
        return [f"{name} has failed: {reason}"] if give_up(storage, trial.trial_id, reason) else []
    return [f"{name} is queued again: its worker ended"] if requeue(storage, trial.trial_id) else []
