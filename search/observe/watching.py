"""A worker watched from outside: its ledger and its saver, counted, clocked and logged as they are used.

All that a worker does to trials passes its ledger, so here each trial's life is logged, a line for
each change, once the database has it; neither broker nor engine knows that anybody watches.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector

from search import logs
from search.observe.exporter import Told
from search.observe.live import Instruments, instruments
from search.work.saving import Saver
from storage.errors import StorageError
from storage.patience import tally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from objectives.base import Engine
    from search.trials.claims import Claim
    from storage.ledger import Draw, Ending, EpochWrite, Expired, Lease, Ledger, Retried, Written

logger = logging.getLogger(__name__)

NAMES: Mapping[str, str] = {
    "complete": "complete",
    "pruned": "pruned",
    "failed": "failed",
    "released": "given back",
    "retry": "failed",
}
"""How a trial was parted with → how its line says it."""


class WatchedLedger:
    """A `Ledger` that passes everything on to another. One thread."""

    def __init__(
        self, ledger: Ledger, metrics: Instruments, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._held: dict[int, int] = {}
        """Token → the last epoch reported, 0 before the first."""
        self._written_at = clock()
        # From 0 on: how much a counter has grown can't be told of one that begins with its first event.
        metrics.start("shoal_worker_endings_total", *NAMES, "lost")
        metrics.start("shoal_database_failures_total", "claim", "write", "expire")
        metrics.asked("shoal_worker_trials_held", lambda: len(self._held))
        metrics.asked("shoal_worker_last_write_seconds", lambda: clock() - self._written_at)

    def register(self, name: str, told: Mapping[str, Any] | None = None) -> int:
        """See `Ledger`."""
        return self._ledger.register(name, told)

    def retire(self, worker_id: int) -> None:
        """See `Ledger`."""
        self._ledger.retire(worker_id)

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
        """See `Ledger`."""
        with self._clocked("claim"):
            leases = self._ledger.claim(study_name, worker_id, waiting=waiting, new=new, of=of, among=among)
        self._metrics.counter("shoal_worker_claims_total").inc(len(leases))
        for lease in leases:
            self._held[lease.token] = 0
            again = f", attempt {lease.attempt}" if lease.attempt > 1 else ""
            _log(logging.INFO, lease, "claimed trial %d of %s%s", lease.number, lease.study_name, again)
        return leases

    def write(
        self,
        *,
        beats: Collection[Lease] = (),
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Written:
        """See `Ledger`."""
        with self._clocked("write"):
            written = self._ledger.write(beats=beats, draws=draws, epochs=epochs, endings=endings)
        self._written_at = self._clock()
        if beats:
            # All that is held: what was given up while the database was away is not among it.
            self._held = {beat.token: self._held.get(beat.token, 0) for beat in beats}
        kept = sum(beat.token not in written.refused for beat in beats)
        self._metrics.counter("shoal_worker_beats_total").inc(kept)
        seconds = self._metrics.histogram("shoal_worker_epoch_seconds")
        for epoch in epochs:
            if epoch.lease.token not in written.refused:
                self._held[epoch.lease.token] = epoch.report.epoch
                seconds.observe(epoch.report.seconds)
        for ending in endings:
            if ending.lease.token not in written.refused:
                self._end(ending, given_up=ending.lease.token in written.given_up)
        for token in written.refused:
            # Whoever holds the leases says which and why.
            self._held.pop(token, None)
            self._metrics.counter("shoal_worker_endings_total", "lost").inc()
        return written

    def expire(self, experiment_id: int, *, dead_workers: Collection[int] = ()) -> list[Expired]:
        """See `Ledger`."""
        with self._clocked("expire"):
            expired = self._ledger.expire(experiment_id, dead_workers=dead_workers)
        for trial in expired:
            fate = "has failed for good" if trial.given_up else "is queued again"
            about = logs.ids(study=trial.study_name, trial=trial.number, attempt=trial.attempt)
            words = "trial %d of %s %s: the lease of %s ran out"
            logger.warning(words, trial.number, trial.study_name, fate, trial.worker, extra=about)
        return expired

    def retry_failed(self, experiment_id: int) -> list[Retried]:
        """See `Ledger`."""
        return self._ledger.retry_failed(experiment_id)

    def _end(self, ending: Ending, *, given_up: bool) -> None:
        lease, epoch = ending.lease, self._held.pop(ending.lease.token, 0)
        self._metrics.counter("shoal_worker_endings_total", ending.state).inc()
        value = "" if ending.value is None else f" with {ending.value:.6g}"
        fate = ", for good" if given_up else ", tried again" if ending.state == "retry" else ""
        reason = "" if ending.reason is None else f": {ending.reason}"
        level = logging.WARNING if ending.state in ("failed", "retry") else logging.INFO
        _log(
            level,
            lease,
            "trial %d of %s %s after epoch %d%s%s%s",
            *(lease.number, lease.study_name, NAMES[ending.state], epoch, value, fate, reason),
            state=ending.state,
            epoch=epoch,
            value=ending.value,
        )

    @contextmanager
    def _clocked(self, call: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        except StorageError:
            self._metrics.counter("shoal_database_failures_total", call).inc()
            raise
        finally:
            self._metrics.histogram("shoal_database_call_seconds", call).observe(self._clock() - began)


class WatchedSaver(Saver):
    """A `Saver` that says how long its checkpoints take, and how many can't be written."""

    def __init__(
        self, seconds: float, metrics: Instruments, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(seconds, clock)
        self._metrics = metrics
        metrics.start("shoal_worker_checkpoints_total", "saved", "failed")

    def save(self, claim: Claim, epoch: int, write: Callable[[Path], None]) -> bool:
        """As a `Saver` does."""
        began = self._clock()
        saved = super().save(claim, epoch, write)
        self._metrics.histogram("shoal_worker_checkpoint_seconds").observe(self._clock() - began)
        self._metrics.counter("shoal_worker_checkpoints_total", "saved" if saved else "failed").inc()
        return saved


class Watched(Collector):
    """What a worker's engine and disk say of themselves, asked at each scrape; and its ledger and saver."""

    def __init__(
        self, labels: tuple[str, str, str, str], engine: Engine, folder: Path, metrics: Instruments
    ) -> None:
        """`labels`: of `shoal_worker_info`; `folder`: where checkpoints go."""
        self._labels = labels
        self._engine = engine
        self._room = engine.free_slots
        self._folder = folder
        self._metrics = metrics

    def ledger(self, ledger: Ledger) -> Ledger:
        """The ledger to use instead."""
        return WatchedLedger(ledger, self._metrics)

    def saver(self, seconds: float) -> Saver:
        """The saver to use."""
        return WatchedSaver(seconds, self._metrics)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What can be told at this moment: the engine's thread goes on meanwhile."""
        told = Told()
        told.add("shoal_worker_info", 1, *self._labels)
        told.add("shoal_database_retries_total", tally.waits)
        for tell in (self._slots, self._engine_numbers, self._memory, self._disk):
            with suppress(RuntimeError, OSError):
                tell(told)
        yield from told.families.values()

    def _slots(self, told: Told) -> None:
        slots = getattr(self._engine, "slots", self._room)
        told.add("shoal_worker_slots", slots)
        told.add("shoal_worker_slots_taken", slots - self._engine.free_slots)

    def _engine_numbers(self, told: Told) -> None:
        for name, attribute in ENGINE_NUMBERS.items():
            if hasattr(self._engine, attribute):
                told.add(name, getattr(self._engine, attribute))

    def _memory(self, told: Told) -> None:
        if hasattr(self._engine, "device_memory"):
            for kind, size in self._engine.device_memory().items():
                told.add("shoal_worker_device_memory_bytes", size, kind)

    def _disk(self, told: Told) -> None:
        there = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        told.add("shoal_worker_checkpoint_disk_free_bytes", shutil.disk_usage(there).free)


@contextmanager
def watching(
    worker: str, experiment: str, told: Mapping[str, Any], engine: Engine, folder: Path
) -> Iterator[Watched]:
    """A worker of this process is watched in the block; see `Watched`. Its log lines say whose they are.

    `told`: what it says as it registers; `folder`: where its checkpoints go.
    """
    metrics = instruments()
    labels = (worker, experiment, str(told.get("device", "")), str(told.get("trainer", "")))
    watched = Watched(labels, engine, folder, metrics)
    metrics.registry.register(watched)
    try:
        with logs.about(experiment=experiment, worker=worker):
            yield watched
    finally:
        metrics.registry.unregister(watched)
        metrics.forget("shoal_worker_trials_held", "shoal_worker_last_write_seconds")


def _log(level: int, lease: Lease, message: str, *values: object, **more: object) -> None:
    if logger.isEnabledFor(level):
        about = logs.ids(
            study=lease.study_name,
            trial=lease.number,
            trial_id=lease.trial_id,
            attempt=lease.attempt,
            **more,
        )
        logger.log(level, message, *values, extra=about)


ENGINE_NUMBERS: Mapping[str, str] = {
    "shoal_worker_row_occupancy": "occupancy",
    "shoal_worker_programs": "programs_built",
    "shoal_worker_images_total": "images_trained",
}
"""Metric → the attribute of an engine that says it, where it has one."""
