"""A trial may be any function of the user's own: a benchmark's table, a surrogate, another framework.

    def function(config, *, seed, split_seed, epochs): ...

`config` is a mapping of the trial's values and the file's constants. Of the three keywords the
function takes those that it wants: `seed` decides all chance of a trial, `split_seed` is the same
for all trials of a replicate, `epochs` is how many values are wanted. It returns, or yields, one
value per epoch: a number, or a mapping of names to numbers with the metric among them. A single
number is a trial of one epoch. A value that is not finite ends the trial as diverged.

Equal arguments must give equal values: a trial that was interrupted is called again, and the values
that are known already are passed over. Torch is not imported.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from objectives.base import (
    EpochEnd,
    EpochReport,
    FunctionTask,
    ObjectiveError,
    SlotError,
    TestScore,
    TrialError,
    TrialFailure,
    TrialStart,
)
from objectives.imports import resolve_import

logger = logging.getLogger(__name__)

KEYWORDS = ("seed", "split_seed", "epochs")
"""What a function may take beside its config."""

FORMAT = 1
"""Changes when older files can no longer be read."""


@dataclass(slots=True)
class _Slot:
    """The trial that an engine holds."""

    start: TrialStart
    values: Iterator[object] | None = None
    """What the function gives, epoch by epoch; None until the first."""
    report: EpochReport | None = None
    """Of the last epoch."""
    ended: bool = False


class FunctionEngine:
    """An `Engine` with one slot that calls a function of the user's own.

    A trial that has ended keeps its slot until it is retired. A checkpoint holds no state, only how
    far the trial was: the function is called again from its beginning.
    """

    def __init__(self, task: FunctionTask, device: str = "auto") -> None:
        self._task = task
        self._device = device
        self._slot: _Slot | None = None

    @property
    def free_slots(self) -> int:
        return 0 if self._slot else 1

    def admit(self, start: TrialStart) -> None:
        if self._slot:
            raise SlotError(f"trial {start.trial_id}: the slot is taken by trial {self._slot.start.trial_id}")
        self._slot = _Slot(start)

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        """Take one value. Empty if there is no trial, or if the one that there is has ended."""
        slot = self._slot
        if slot is None or slot.ended:
            return ()
        try:
            report = self._next_report(slot)
        except Exception as error:  # noqa: BLE001 (whatever a trial raises is that trial's failure)
            self._slot = None
            return (_failure(slot.start.trial_id, error),)
        slot.report = report
        slot.ended = report.diverged or report.epoch >= slot.start.config.epochs
        test = _score(report) if slot.ended and slot.start.score_test else None
        return (EpochEnd(slot.start.trial_id, report, slot.ended, test),)

    def retire(self, trial_id: int) -> None:
        slot = self._held(trial_id)
        self._slot = None
        close = getattr(slot.values, "close", None)  # a generator's `finally` blocks
        if close is not None:
            close()

    def save(self, trial_id: int, path: Path) -> None:
        """As `Engine.save`; also raises `SlotError` before the first epoch."""
        slot = self._held(trial_id)
        if slot.report is None:
            raise SlotError(f"trial {trial_id} is not at the end of an epoch, there is nothing to save")
        _write(path, {"fingerprint": _fingerprint(slot.start, self._task), "report": asdict(slot.report)})

    def _held(self, trial_id: int) -> _Slot:
        if self._slot is None or self._slot.start.trial_id != trial_id:
            raise SlotError(f"trial {trial_id} has no slot here")
        return self._slot

    def _next_report(self, slot: _Slot) -> EpochReport:
        started = time.perf_counter()
        if slot.values is None:
            slot.values = values_of(self._task, slot.start)
            known = _saved_report(slot.start, self._task)
            if known is not None and (known.diverged or known.epoch >= slot.start.config.epochs):
                return known  # saved after its last epoch: what it said then is all that is left to say
            if known is not None:
                slot.report = known
                for epoch in range(1, known.epoch + 1):
                    _next(slot.values, epoch, slot.start.config.epochs)
        epoch = 1 + (slot.report.epoch if slot.report else 0)
        value = _next(slot.values, epoch, slot.start.config.epochs)
        metrics = judged(value, self._task)
        return EpochReport(
            epoch=epoch,
            train_loss=None,
            validation_loss=None,
            metrics={self._task.metric: self._task.worst} if metrics is None else metrics,
            gradient_norm=None,
            learning_rate=0.0,  # the engine knows of none
            seconds=time.perf_counter() - started,
            images_per_second=0.0,
            diverged=metrics is None,
        )


def _score(report: EpochReport) -> TestScore:
    """A function has no sealed test set: its value at a seed that no search has seen takes its place."""
    return TestScore(
        metrics=report.metrics,
        epochs=report.epoch,
        images=0,
        seconds=report.seconds,
        validation=report.metrics,
    )


def keywords_of(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """Which of `KEYWORDS` a function takes. Raises `TrialError` for one that can't be called."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:  # some that are written in C have none
        raise TrialError(f"{name} does not say what it takes: {error}") from error
    parameters = signature.parameters.values()
    taken = {each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    everything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    keywords = tuple(word for word in KEYWORDS if everything or word in taken)
    try:
        signature.bind({}, **dict.fromkeys(keywords, 0))
    except TypeError as error:
        raise TrialError(
            f"{name} can't be called as function(config, *, seed, split_seed, epochs), "
            f"with those keywords that it takes: {error}"
        ) from error
    return keywords


def values_of(task: FunctionTask, start: TrialStart) -> Iterator[object]:
    """What the function gives for a trial, not looked at yet. Raises what the function raises."""
    function = resolve_import(task.function, task.allow_imports)
    given = {"seed": start.seed, "split_seed": start.split_seed, "epochs": start.config.epochs}
    keywords = {word: given[word] for word in keywords_of(function, task.function)}
    result = function(dict(start.config.values), **keywords)
    if isinstance(result, Iterable) and not isinstance(result, Mapping | str):
        return iter(result)
    return iter((result,))


def _next(values: Iterator[object], epoch: int, epochs: int) -> object:
    try:
        return next(values)
    except StopIteration:
        given = "1 value" if epoch == 2 else f"{epoch - 1} values"
        raise TrialError(f"the function gave {given}; the trial has {epochs} epochs") from None


def judged(value: object, task: FunctionTask) -> dict[str, float] | None:
    """The numbers of an epoch with the metric among them; None where the metric is not finite.

    A metric beyond the declared worst counts as the worst. Other numbers that are not finite are left
    out. Raises `TrialError` where there is no such number.
    """
    numbers = value if isinstance(value, Mapping) else {task.metric: value}
    if task.metric not in numbers:
        raise TrialError(f"the function gave {sorted(map(str, numbers))}, but no {task.metric!r}")
    found = {str(name): _number(number, str(name)) for name, number in numbers.items()}
    metric = found[task.metric]
    if not math.isfinite(metric):
        return None
    limit = min if task.direction == "minimize" else max
    finite = {name: number for name, number in found.items() if math.isfinite(number)}
    return finite | {task.metric: limit(metric, task.worst)}


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not (isinstance(value, Real) or hasattr(value, "__float__")):
        raise TrialError(f"{name} is {type(value).__name__}, not a number")
    try:
        return float(value)  # NumPy's and torch's numbers too
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrialError(f"{name} is not a number: {error}") from error
    except OverflowError:
        return math.inf


def _failure(trial_id: int, error: Exception) -> TrialFailure:
    return TrialFailure(
        trial_id=trial_id,
        reason=str(error) if isinstance(error, ObjectiveError) else f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        retryable=isinstance(error, MemoryError),
    )


# Checkpoints


def _fingerprint(start: TrialStart, task: FunctionTask) -> str:
    """A hash of all that decides a trial's values."""
    parts = [FORMAT, task.function, asdict(start.config), start.seed, start.split_seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Whole or not at all, replacing what is there only when the new file is safely on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _saved_report(start: TrialStart, task: FunctionTask) -> EpochReport | None:
    """The report in the trial's checkpoint; None where there is none that is its own: it starts anew."""
    if start.checkpoint is None:
        return None
    try:
        content = json.loads(start.checkpoint.read_text(encoding="utf-8"))
        if content["fingerprint"] == _fingerprint(start, task):
            return EpochReport(**content["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("checkpoint %s can't be used, the trial starts anew: %s", start.checkpoint, error)
    return None
