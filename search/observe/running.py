"""A run watched from outside: its events as metrics and log lines, its finished trials in sinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from search import logs, output
from search.control.events import Event, Listener, Preparing, Progress, Started, Stopping, Trouble
from search.observe.feeding import feeding
from search.observe.live import Instruments, instruments, serve_metrics
from search.observe.sinks import targets

if TYPE_CHECKING:
    from search.observe.sinks import Target

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Between two lines of how far a run is."""


class RunMetrics:
    """Listens to a controller, and keeps its metrics."""

    def __init__(
        self, experiment: str, metrics: Instruments, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._experiment = experiment
        self._metrics = metrics
        self._clock = clock
        self._seen_at: float | None = None
        metrics.start("shoal_controller_troubles_total", experiment)

    def on_event(self, event: Event) -> None:
        """Count."""
        name, gauge = self._experiment, self._metrics.gauge
        match event:
            case Started(workers=workers):
                gauge("shoal_controller_workers", name).set(workers)
            case Progress(trials=trials, seconds=seconds, workers=workers):
                if self._seen_at is None:
                    self._metrics.asked("shoal_controller_last_look_seconds", self._age, name)
                self._seen_at = self._clock()
                gauge("shoal_controller_workers", name).set(workers)
                gauge("shoal_controller_run_seconds", name).set(seconds)
                gauge("shoal_controller_trials_planned", name).set(trials)
                gauge("shoal_controller_trials_ended", name).set(event.ended)
            case Trouble():
                self._metrics.counter("shoal_controller_troubles_total", name).inc()

    def _age(self) -> float:
        return self._clock() - (self._seen_at or 0.0)


class RunLog:
    """Listens to a controller, and writes log lines: where nobody watches a terminal."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: float | None = None

    def on_event(self, event: Event) -> None:
        """Log it; of progress, a line now and then."""
        match event:
            case Preparing(what):
                logger.info("%s", what)
            case Started(workers=workers, resumed=resumed):
                begun = "goes on" if resumed else "started"
                logger.info("%s with %d workers", begun, workers, extra=logs.ids(workers=workers))
            case Progress() if self._said_at is None or self._clock() - self._said_at >= LINE_SECONDS:
                self._said_at = self._clock()
                told = logs.ids(ended=event.ended, planned=event.trials, workers=event.workers)
                logger.info("%d of %d trials have ended", event.ended, event.trials, extra=told)
            case Trouble(message):
                logger.warning("%s", message)
            case Stopping(why):
                logger.warning("%s: the current epochs end, then it stops", why)


@contextmanager
def observed_run(
    experiment: str,
    database_url: str,
    listener: Listener,
    *,
    metrics_port: int | None = None,
    sinks: Sequence[str] = (),
) -> Iterator[Listener]:
    """Watch a run in the block: the listener to give it instead of `listener`, which hears all as well.

    Raises `CommandError` before anything begins: for a sink that is none or whose library is not
    installed, and for a port that can't be had.
    """
    chosen: list[Target] = targets(sinks)
    listeners = [RunMetrics(experiment, instruments()).on_event, listener]
    if output.for_programs():
        listeners.append(RunLog().on_event)

    def hear(event: Event) -> None:
        for each in listeners:
            each(event)

    with (
        serve_metrics(metrics_port),
        logs.about(experiment=experiment),
        feeding(chosen, database_url, experiment, output.warn),
    ):
        yield hear
