"""The exporter: what the database says, as metrics. Any number of scrapes costs few readings.

A reading is shared by all scrapes of the next seconds, and the longer it took the longer it stands, so
that the exporter never takes more than a small part of the database's time. While the database is
away the numbers are left out and `shoal_database_up` is 0: an old value would look like a fresh one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from search.experiment.spec import default_epochs
from search.observe.metrics import METRICS
from storage.errors import StorageError
from storage.metric_values import PruningNumbers
from storage.metrics import Numbers
from storage.records import ExperimentState, TrialState
from storage.schedule_records import FiringState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from storage.database import Database
    from storage.metric_values import (
        ExperimentNumbers,
        ScheduleNumbers,
        ServerNumbers,
        Snapshot,
        ToldExperiment,
    )

logger = logging.getLogger(__name__)

STANDS_SECONDS = 5.0
"""For so long a reading is shown again instead of made anew …"""
STANDS_TIMES = 10
"""… or for so many times what it took, if that is longer."""

OUTCOMES = ("complete", "pruned", "failed", "released", "lost")


class Reader(Protocol):
    """What the exporter needs of `storage.metrics.Numbers`."""

    def read(self) -> Snapshot:
        """A new reading. Raises `StorageError`."""


class Exporter(Collector):
    """Collects the metrics of the database. May be scraped by several threads at once."""

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._guard = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0
        self._stands_until = 0.0
        self._away = False

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told, by metric."""
        with self._guard:
            self._refresh()
            snapshot, age = self._snapshot, self._clock() - self._read_at
        yield from families(snapshot, age)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known, and the database need not be there when we start."""
        return ()

    def _refresh(self) -> None:
        began = self._clock()
        if began < self._stands_until:
            return
        try:
            self._snapshot = self._reader.read()
        except StorageError as error:
            if not self._away:
                logger.warning("the database can't be read: %s", error)
            self._snapshot, self._away = None, True
        else:
            self._away = False
        self._read_at = self._clock()
        self._stands_until = self._read_at + max(STANDS_SECONDS, STANDS_TIMES * (self._read_at - began))


def exporter_of(database: Database) -> Exporter:
    """The exporter of a database; nothing is asked before the first scrape."""
    return Exporter(
        Numbers(
            database, epochs=default_epochs(function=False), function_epochs=default_epochs(function=True)
        )
    )


class Told:
    """Collects samples by metric."""

    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        """A sample; labels in the order of the metric's own."""
        if name not in self.families:
            metric = METRICS[name]
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            self.families[name] = family(name, metric.help, labels=metric.labels)
        family_of_name = self.families[name]
        assert isinstance(family_of_name, CounterMetricFamily | GaugeMetricFamily)
        family_of_name.add_metric(labels, value)


def families(snapshot: Snapshot | None, age: float) -> Iterable[Metric]:
    """A snapshot as metrics; None: the database is away. `age`: seconds since it was read."""
    told = Told()
    told.add("shoal_database_up", 0 if snapshot is None else 1)
    if snapshot is None:
        return told.families.values()
    told.add("shoal_database_reading_seconds", snapshot.seconds)
    told.add("shoal_database_reading_age_seconds", age)
    _server(told, snapshot.server)
    for state in get_args(ExperimentState):
        told.add("shoal_experiments", snapshot.states.get(state, 0), state)
    for experiment in snapshot.experiments:
        _experiment(told, experiment)
    for schedule in snapshot.schedules:
        _schedule(told, schedule)
    if snapshot.notices is not None:
        told.add("shoal_notices_unsent", snapshot.notices.unsent)
        told.add("shoal_notices_oldest_seconds", snapshot.notices.oldest_seconds)
        told.add("shoal_notices_given_up", snapshot.notices.given_up)
    return told.families.values()


def _server(told: Told, server: ServerNumbers) -> None:
    told.add("shoal_database_reading_statements", server.statements)
    told.add("shoal_database_round_trip_seconds", server.round_trip_seconds)
    told.add("shoal_database_size_bytes", server.size_bytes)
    told.add("shoal_database_connections", server.connections)
    told.add("shoal_database_connections_limit", server.connections_limit)
    if server.oldest_transaction_seconds is not None:
        told.add("shoal_database_oldest_transaction_seconds", server.oldest_transaction_seconds)


EVENT_METRICS: Mapping[str, str] = {
    "expired": "shoal_lease_expiries_total",
    "refused": "shoal_fence_rejections_total",
    "given_up": "shoal_trials_given_up_total",
}
"""Kind of event → the metric that counts it."""


def _experiment(told: Told, experiment: ToldExperiment) -> None:
    head, numbers, name = experiment.head, experiment.numbers, experiment.head.name
    direction = {True: "maximize", False: "minimize", None: "unknown"}[numbers.maximize]
    told.add("shoal_experiment_info", 1, name, head.state, head.metric, direction)
    told.add("shoal_experiment_running", head.state == "running", name)
    told.add("shoal_experiment_controlled", experiment.controlled, name)
    told.add("shoal_experiment_stop_requested", head.stop_requested, name)
    quiet = numbers.quiet_seconds
    told.add("shoal_last_progress_seconds", head.changed_seconds if quiet is None else quiet, name)
    workers = {worker for attempts in numbers.attempts for worker in attempts.workers}
    told.add("shoal_workers", len(workers), name)
    told.add("shoal_leases_overdue", sum(attempts.overdue for attempts in numbers.attempts), name)
    for kind, metric in EVENT_METRICS.items():
        told.add(metric, experiment.events.get(kind, 0), name)
    _methods(told, name, numbers)


def _methods(told: Told, name: str, numbers: ExperimentNumbers) -> None:
    counts = {(trials.method, trials.role, trials.state): trials.trials for trials in numbers.trials}
    for method, role in dict.fromkeys((trials.method, trials.role) for trials in numbers.trials):
        for state in (*get_args(TrialState), "paused"):
            # None is 0: a series that comes and goes can't be summed.
            told.add("shoal_trials", counts.get((method, role, state), 0), name, method, role, state)
    waiting = sum(trials.trials for trials in numbers.trials if trials.state == "waiting")
    told.add("shoal_queue_depth", waiting, name)
    for trials in numbers.trials:
        if trials.best is not None and trials.role == "search":
            told.add("shoal_best_value", trials.best, name, trials.method)
    for attempts in numbers.attempts:
        told.add("shoal_trials_running", attempts.running, name, attempts.method)
        told.add("shoal_sampler_seconds_total", attempts.sampler_seconds, name, attempts.method)
        for outcome in OUTCOMES:
            count = getattr(attempts, outcome)
            told.add("shoal_attempts_total", count, name, attempts.method, outcome)
    for curve in numbers.curves:
        told.add("shoal_epochs", curve.epochs, name, curve.method, curve.role)
        told.add("shoal_device_seconds", curve.seconds, name, curve.method, curve.role)
    saved = {pruning.method: pruning for pruning in numbers.pruning}
    for method in dict.fromkeys(trials.method for trials in numbers.trials if trials.role == "search"):
        pruning = saved.get(method, PruningNumbers(method, 0.0, 0.0))
        told.add("shoal_pruning_saved_epochs", pruning.epochs, name, method)
        told.add("shoal_pruning_saved_seconds", pruning.seconds, name, method)


def _schedule(told: Told, schedule: ScheduleNumbers) -> None:
    told.add("shoal_schedule_paused", schedule.paused, schedule.name)
    overdue = overdue_seconds(schedule)
    if overdue is not None:
        told.add("shoal_schedule_overdue_seconds", overdue, schedule.name)
    told.add("shoal_schedule_queued_seconds", schedule.queued_seconds, schedule.name)
    for state in get_args(FiringState):
        told.add("shoal_schedule_firings", schedule.firings.get(state, 0), schedule.name, state)


def overdue_seconds(schedule: ScheduleNumbers) -> float | None:
    """Since the first firing time was due that nobody has decided about; 0 if none is, or it is paused.

    None for one whose times can't be told here: its zone may be unknown on this machine.
    """
    if schedule.paused:
        return 0.0
    from cronsim import CronSim, CronSimError

    try:
        since = schedule.decided_until.astimezone(ZoneInfo(schedule.timezone))
        due = next(CronSim(schedule.cron, since))
    except (CronSimError, ZoneInfoNotFoundError, StopIteration):
        return None
    return max(0.0, (schedule.now - due).total_seconds())
