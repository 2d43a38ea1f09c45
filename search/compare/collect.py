"""From the database to a `Comparison`: the only file of `compare` that reads anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from search.compare.base import (
    Comparison,
    EpochPoint,
    Execution,
    Reading,
    Retrainings,
    StudyOutcome,
    TrialOutcome,
    Way,
    WorkerSeen,
)
from search.experiment.settings import AshaPromotionSettings
from storage import queries
from storage.attempts import Attempts
from storage.curves import Curves
from storage.experiments import Experiments
from storage.programs import Programs
from storage.test_readings import TestReadings

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import (
        CrewMember,
        CurveArrays,
        ProgramRecord,
        StudyProgress,
        StudyRecord,
        TestReading,
        TrialRow,
    )


def collect(database: Database, experiment: str) -> Comparison:
    """Everything that was measured for the experiment so far, whether or not it runs now.

    Raises `ExperimentNotFound`.
    """
    experiments = Experiments(database)
    record = experiments.get(experiment)
    studies = experiments.studies(record.id)
    rows = queries.trials(database, record.id)
    metric = str(record.spec["metric"])
    return Comparison(
        experiment=record.name,
        state=record.state,
        metric=metric,
        direction=queries.direction(database, record.id)
        or "maximize",  # None: there is nothing yet to compare
        spec=record.spec,
        environment=record.environment,
        created_at=record.created_at,
        collected_at=datetime.now(UTC),
        studies=study_outcomes(
            in_file_order(studies, record.spec),
            rows,
            Curves(database).points(record.id, metric),
            rests=_pruner_name(record.spec) == AshaPromotionSettings().name,
        ),
        readings=readings(TestReadings(database).of_experiment(record.id), studies, rows),
        retrainings=retrainings(studies, queries.progress(database, record.id, role="retraining")),
        execution=execution(
            Attempts(database).crew(record.id),
            Programs(database).of_experiment(record.id),
            Attempts(database).most_held(record.id),
        ),
    )


def _pruner_name(spec: Mapping[str, object]) -> object:
    pruner = spec.get("pruner")
    return pruner.get("name") if isinstance(pruner, Mapping) else pruner


def retrainings(studies: Iterable[StudyRecord], progress: Iterable[StudyProgress]) -> dict[str, Retrainings]:
    """By the searching study's name, its retrainings that failed or are still open."""
    named = {(study.method, study.replicate): study.name for study in studies}
    return {
        named[place]: Retrainings(failed=one.failed, open=one.waiting + one.running)
        for one in progress
        if (place := (one.study.method, one.study.replicate)) in named
    }


def execution(
    crew: Iterable[CrewMember], programs: Iterable[ProgramRecord], most_held: Mapping[str, int]
) -> Execution:
    """How the trials were run, from what workers and their attempts left in the database."""
    return Execution(
        workers=tuple(
            WorkerSeen(
                host=one.host,
                trainer=_text(one.told.get("trainer")),
                device=_text(one.told.get("device")),
                slots=slots if isinstance(slots := one.told.get("slots"), int) else None,
                most_held=one.most_held,
            )
            for one in crew
        ),
        ways=tuple(
            Way(
                program=one.program,
                batch=one.batch,
                device=one.device,
                fused=one.fused,
                reason=one.reason,
                fused_rate=one.fused_rate,
                alone_rate=one.alone_rate,
                slots=one.slots,
            )
            for one in programs
        ),
        most_held=dict(most_held),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def in_file_order(studies: Iterable[StudyRecord], spec: Mapping[str, object]) -> list[StudyRecord]:
    """The studies by method, as the file lists them, then by replicate."""
    methods = spec.get("methods")
    order = {name: place for place, name in enumerate(methods)} if isinstance(methods, Mapping) else {}
    return sorted(studies, key=lambda s: (order.get(s.method, len(order)), s.method, s.replicate))


def study_outcomes(
    studies: Iterable[StudyRecord],
    rows: Iterable[TrialRow],
    curves: Mapping[int, CurveArrays],
    *,
    rests: bool = False,
) -> tuple[StudyOutcome, ...]:
    """The studies with their trials by number, each with its curve; `curves` by the trial's id.

    `rests`: whether trials rest at rungs. Those that nobody promoted end together, when their study does;
    but what they cost was spent when they came to rest.
    """
    trials: dict[str, list[TrialOutcome]] = defaultdict(list)
    for row in rows:
        curve = curves.get(row.trial_id)
        outcome = trial_outcome(row, curve)
        if rests and curve is not None and row.state == "pruned":
            outcome = replace(outcome, ended_at=curve.written_at)
        trials[row.study_name].append(outcome)
    return tuple(
        StudyOutcome(
            method=study.method,
            replicate=study.replicate,
            name=study.name,
            trials=tuple(sorted(trials[study.name], key=lambda trial: trial.number)),
        )
        for study in studies
    )


def trial_outcome(row: TrialRow, curve: CurveArrays | None) -> TrialOutcome:
    """A row of the database as the report sees it."""
    return TrialOutcome(
        number=row.number,
        state=row.state,
        value=row.value,
        params=row.params,
        epochs=row.epochs,
        seconds=row.seconds,
        sampler_seconds=row.sampler_seconds,
        attempts=row.attempts,
        reason=row.reason,
        diverged=row.diverged,
        shared_with=row.shared_with,
        shared_epochs=row.shared_epochs,
        started_at=row.started_at,
        ended_at=row.ended_at,
        curve=() if curve is None else _points(curve),
    )


def _points(curve: CurveArrays) -> tuple[EpochPoint, ...]:
    losses = (curve.train_losses, curve.validation_losses)
    return tuple(map(_point, curve.epochs, curve.values, *losses, curve.seconds))


def _point(
    epoch: int, value: float | None, train_loss: float | None, validation_loss: float | None, seconds: float
) -> EpochPoint:
    return EpochPoint(
        epoch=epoch,
        value=value,
        train_loss=train_loss,
        validation_loss=validation_loss,
        seconds=seconds,
    )


def readings(
    found: Iterable[TestReading], studies: Iterable[StudyRecord], rows: Iterable[TrialRow]
) -> tuple[Reading, ...]:
    """The log of the test set, in the order of reading.

    Readings of trials that Optuna's tables no longer hold are left out, as the trials are: a study
    that was deleted and made anew has other trials of the same numbers.
    """
    named = {study.name: study for study in studies}
    there = {row.trial_id for row in rows}
    return tuple(
        Reading(
            method=named[reading.study_name].method,
            replicate=named[reading.study_name].replicate,
            trial=reading.trial_number,
            seed=reading.seed,
            metrics=reading.metrics,
            validation=reading.validation,
            epochs=reading.epochs,
            images=reading.images,
            read_at=reading.read_at,
            purpose=reading.purpose,
        )
        for reading in sorted(found, key=lambda reading: (reading.read_at, reading.id))
        if reading.study_name in named and reading.trial_id in there
    )
