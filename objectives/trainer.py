"""The plain engine: one trial at a time, in ordinary PyTorch. The reference for every other engine."""

from __future__ import annotations

import gc
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from objectives import checkpoints
from objectives.base import (
    EpochEnd,
    EpochReport,
    ObjectiveError,
    SlotError,
    StateCopy,
    Task,
    TestScore,
    TrialConfig,
    TrialFailure,
    TrialStart,
)
from objectives.datasets import SearchData, TestData, load, load_test
from objectives.devices import check_works, memory_of, prepare, reproducible
from objectives.graphed import training_for
from objectives.metrics import worst_metrics
from objectives.shortage import is_out_of_memory
from objectives.training import Training

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """The trial that an engine holds."""

    start: TrialStart
    training: Training | None = None
    """None until the first epoch, so that what goes wrong in building it is a failure of the trial."""
    report: EpochReport | None = None
    """Of the last epoch."""
    ready: bool = False
    """Whether it stands at the end of an epoch: not before the first, nor where one was interrupted."""
    ended: bool = False


class PlainEngine:
    """An `Engine` with one slot. A trial that has ended keeps it until it is retired, and trains no more.

    `device` is `auto`, `cpu` or `cuda[:n]`; `threads` is how many the CPU may use while a trial trains: the
    number shows in the last bits of a curve, None leaves the process's own. On a GPU steps are recorded and
    replayed, unless it is to be `eager` (for comparisons). Raises `ObjectiveError` for a
    device that isn't there.
    """

    def __init__(
        self, task: Task, device: str = "auto", *, threads: int | None = 1, eager: bool = False
    ) -> None:
        self._make: Callable[..., Training] = Training if eager else training_for
        self._task = task
        self._device = prepare(device)
        self._threads = threads
        self._slot: _Slot | None = None
        self.images_trained = 0
        """So far, counted at the ends of epochs."""
        self._test_data: TestData | None = None
        """Read when the first trial that asks for it has ended."""

    @property
    def free_slots(self) -> int:
        return 0 if self._slot else 1

    def device_memory(self) -> Mapping[str, int]:
        """A GPU's memory in bytes, see `objectives.devices.memory_of`. May be asked by any thread."""
        return memory_of(self._device)

    def admit(self, start: TrialStart) -> None:
        if self._slot:
            raise SlotError(f"trial {start.trial_id}: the slot is taken by trial {self._slot.start.trial_id}")
        self._slot = _Slot(start)

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        """Train one epoch. Empty if there is no trial, or if the one that there is has ended.

        Raises `DeviceLostError` where no trial of this process can go on.
        """
        if self._slot is None or self._slot.ended:
            return ()
        start = self._slot.start
        try:
            self._slot.ready = False
            with reproducible(self._threads, self._task.precision):
                report = self._next_report(self._slot)
                test = self._test_score(self._slot, report)
        except Exception as error:  # noqa: BLE001 (whatever a trial raises is that trial's failure)
            self._slot = None
            failure = failure_of(start.trial_id, error)
        else:
            self._slot.report = report
            self._slot.ready = True
            self._slot.ended = report.diverged or report.epoch >= start.config.epochs
            return (EpochEnd(start.trial_id, report, self._slot.ended, test),)
        check_works(self._device)
        if failure.retryable:  # here, where the exception no longer keeps the trial's tensors alive
            gc.collect()
            torch.cuda.empty_cache()
        return (failure,)

    def retire(self, trial_id: int) -> None:
        self._held(trial_id)
        self._slot = None

    def save(self, trial_id: int, path: Path) -> None:
        """As `Engine.save`; also raises `SlotError` if the trial does not stand at the end of an epoch."""
        checkpoints.save(path, self._checkpoint(trial_id))

    def copy_of(self, trial_id: int) -> StateCopy:
        """As `CopyingEngine.copy_of`."""
        found = self._checkpoint(trial_id)
        state = checkpoints.on_host(found.state)
        return StateCopy(found.fingerprint, found.report, state, checkpoints.size_of(state))

    def _checkpoint(self, trial_id: int) -> checkpoints.Checkpoint:
        """What there is to be saved, not copied."""
        slot = self._held(trial_id)
        if slot.training is None or slot.report is None or not slot.ready:
            raise SlotError(f"trial {trial_id} is not at the end of an epoch, there is nothing to save")
        kind = checkpoints.fingerprint(slot.start, self._task.data)
        return checkpoints.Checkpoint(kind, slot.report, slot.training.state())

    def _test_score(self, slot: _Slot, report: EpochReport) -> TestScore | None:
        ended = report.diverged or report.epoch >= slot.start.config.epochs
        if not (ended and slot.start.score_test):
            return None
        assert slot.training is not None, "it has just trained, or been restored"
        self._test_data = self._test_data or load_test(self._task.data, self._device)
        return test_score(slot.training, report, self._test_data)

    def _held(self, trial_id: int) -> _Slot:
        if self._slot is None or self._slot.start.trial_id != trial_id:
            raise SlotError(f"trial {trial_id} has no slot here")
        return self._slot

    def _next_report(self, slot: _Slot) -> EpochReport:
        if slot.training is None:
            slot.training, report = self._begin(slot.start)
            if report and (report.diverged or report.epoch >= slot.start.config.epochs):
                return report  # saved after its last epoch: what it said then is all that is left to say
        report = train_epoch(slot.training)
        self.images_trained += len(slot.training.data.training_indices)
        return report

    def _begin(self, start: TrialStart) -> tuple[Training, EpochReport | None]:
        """The trial as new, or as it was left, with the report of that epoch."""
        data = load(self._task.data, start.split_seed, self._device)
        for found in self._saved(start):
            training = self._new(start, data)
            try:
                training.restore(found.state, found.report.epoch)
            except Exception as error:  # noqa: BLE001 (torch raises almost anything for a state that doesn't fit)
                logger.warning("what was saved does not fit the model (%s): %s", start.checkpoint, error)
            else:
                return training, found.report
        return self._new(start, data), None

    def _saved(self, start: TrialStart) -> Iterator[checkpoints.Checkpoint]:
        """What the trial was: by a copy, then by its checkpoint."""
        expected = checkpoints.fingerprint(start, self._task.data)
        copy = start.carried.take() if start.carried else None
        if copy is not None and copy.fingerprint == expected and isinstance(copy.state, Mapping):
            # An optimizer goes on with the very tensors that it is given.
            yield checkpoints.Checkpoint(expected, copy.report, checkpoints.on_host(copy.state))
        found = None if start.checkpoint is None else checkpoints.load(start.checkpoint, expected)
        if found is not None:
            yield found

    def _new(self, start: TrialStart, data: SearchData) -> Training:
        task = self._task
        return self._make(start.config, start.seed, data, task.allow_imports, precision=task.precision)


def train_epoch(training: Training) -> EpochReport:
    """Train for an epoch and validate. Every number of the report is finite, whatever happened."""
    started = time.perf_counter()
    trained = training.train_epoch()
    scores = None if trained.diverged else training.validate()
    diverged = scores is None or not scores.finite
    return EpochReport(
        epoch=training.epoch,
        train_loss=_finite(trained.loss),
        validation_loss=_finite(scores.loss) if scores else None,
        metrics=worst_metrics() if scores is None or diverged else scores.metrics,
        gradient_norm=_finite(trained.gradient_norm),
        learning_rate=trained.learning_rate,
        seconds=time.perf_counter() - started,
        images_per_second=trained.images / max(trained.seconds, 1e-9),
        diverged=diverged,
    )


def test_score(training: Training, report: EpochReport, test: TestData) -> TestScore:
    """What a trial that ended with `report` is worth on the test images; a diverged one has the worst."""
    started = time.perf_counter()
    diverged = report.diverged
    metrics = worst_metrics() if diverged else training.score(test.images, test.labels).metrics
    return TestScore(
        metrics=metrics,
        epochs=report.epoch,
        images=len(test.labels),
        seconds=time.perf_counter() - started,
        validation=report.metrics,
    )


def score_on_test(
    task: Task,
    config: TrialConfig,
    seed: int,
    split_seed: int,
    device: str = "auto",
    *,
    threads: int | None = 1,
) -> TestScore:
    """Train `config` once, as a trial of a search would be, and score the result on the sealed test images.

    The training images are those of the search: the validation images stay out, and are scored as well. A
    diverged training has every metric at its worst. Whatever goes wrong is raised: `TrialError`, `DataError`.
    """
    started = time.perf_counter()
    chosen = prepare(device)
    with reproducible(threads, task.precision):
        data = load(task.data, split_seed, chosen)
        training = training_for(config, seed, data, task.allow_imports, precision=task.precision)
        test = load_test(task.data, chosen)  # before the training, which would be in vain without it
        diverged = False
        while training.epoch < config.epochs and not diverged:
            diverged = training.train_epoch().diverged
        scores = None if diverged else training.validate()
        diverged = scores is None or not scores.finite  # as a trial of a search is judged
        validation = worst_metrics() if scores is None or diverged else scores.metrics
        metrics = worst_metrics() if diverged else training.score(test.images, test.labels).metrics
    return TestScore(
        metrics=metrics,
        epochs=training.epoch,
        images=len(test.labels),
        seconds=time.perf_counter() - started,
        validation=validation,
    )


def failure_of(trial_id: int, error: Exception) -> TrialFailure:
    """What became of a trial that raised: the machine's fault (out of memory) may be tried again."""
    reason = str(error) if isinstance(error, ObjectiveError) else f"{type(error).__name__}: {error}"
    return TrialFailure(
        trial_id=trial_id,
        reason=reason,
        traceback="".join(traceback.format_exception(error)),
        retryable=is_out_of_memory(error),
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
