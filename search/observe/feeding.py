"""Feeds sinks with the finished trials of an experiment while it runs, in a thread of its own.

A sink may be slow, away or broken: that is said once, tried again later, ever more rarely, and never
anybody else's concern. What it misses at the end of a run it gets with the next run of the experiment,
also of one that is finished, for what is missing is found by comparing it with the database.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.observe.live import Instruments, instruments
from search.observe.sinks import Origin, Sink, Target, open_sink
from search.trials.study import SEED_KEY
from storage.database import Database
from storage.errors import StorageError
from storage.experiments import Experiments
from storage.finished import Finished

if TYPE_CHECKING:
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks for trials that have ended."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds after which a sink that failed is tried again, doubling from the first to the second."""
TRIALS_AT_ONCE = 50
LAST_SECONDS = 30.0
"""For what is left when a run has ended: a sink that takes longer is left behind."""


@dataclass(slots=True)
class _Feed:
    """One sink and what we know of it."""

    target: Target
    sink: Sink | None = None
    known: set[int] | None = None
    """None: to be asked."""
    pause: float = FIRST_PAUSE
    retry_at: float = 0.0
    error: str = ""
    """Why it is away; empty if it isn't."""


class Feeder:
    """Writes to each sink what it lacks. One thread."""

    def __init__(
        self,
        targets: Sequence[Target],
        origin: Origin,
        finished: Finished,
        *,
        metrics: Instruments,
        clock: Callable[[], float] = time.monotonic,
        opener: Callable[[Target, Origin], Sink] = open_sink,
    ) -> None:
        self._origin = origin
        self._finished = finished
        self._metrics = metrics
        self._clock = clock
        self._open = opener
        self._feeds = [_Feed(target) for target in targets]
        for name in ("shoal_sink_trials_total", "shoal_sink_failures_total"):
            metrics.start(name, *(target.kind for target in targets))

    def step(self, *, last: bool = False) -> None:
        """Write what can be written now; `last`: also to sinks whose time to be tried has not come.

        Raises `StorageError` where the database is away, and nothing of a sink's.
        """
        ended = self._finished.ids()
        for feed in self._feeds:
            if feed.error and not last and self._clock() < feed.retry_at:
                continue
            try:
                self._feed(feed, ended)
            except StorageError:
                raise
            except Exception as error:  # noqa: BLE001  whatever a sink's library raises is the sink's failure
                self._fail(feed, error)
            else:
                self._recover(feed)

    def missing(self) -> dict[str, tuple[int, str]]:
        """Sinks that lack trials: how many, and why. Raises `StorageError`."""
        ended = self._finished.ids()
        lacking = {
            feed.target.shown: (len(ended - (feed.known or set())), feed.error) for feed in self._feeds
        }
        return {name: entry for name, entry in lacking.items() if entry[0]}

    def _feed(self, feed: _Feed, ended: frozenset[int]) -> None:
        if feed.sink is None:
            feed.sink = self._open(feed.target, self._origin)
        if feed.known is None:
            feed.known = feed.sink.known()
        lacking = sorted(ended - feed.known)
        for start in range(0, len(lacking), TRIALS_AT_ONCE):
            for trial in self._finished.trials(lacking[start : start + TRIALS_AT_ONCE]):
                feed.sink.write(trial)
                feed.known.add(trial.row.trial_id)
                self._metrics.counter("shoal_sink_trials_total", feed.target.kind).inc()

    def _fail(self, feed: _Feed, error: Exception) -> None:
        # Whether the last one is there now has to be asked; and a connection may have to be made anew.
        feed.sink, feed.known = None, None
        self._metrics.counter("shoal_sink_failures_total", feed.target.kind).inc()
        if not feed.error:
            logger.warning("%s can't be written, its trials are written later: %s", feed.target.shown, error)
        feed.error = str(error) or type(error).__name__
        feed.retry_at = self._clock() + feed.pause
        feed.pause = min(2 * feed.pause, LONGEST_PAUSE)

    def _recover(self, feed: _Feed) -> None:
        if feed.error:
            logger.warning("%s can be written again", feed.target.shown)
        feed.error, feed.pause = "", FIRST_PAUSE


@contextmanager
def feeding(
    targets: Sequence[Target], database_url: str, experiment: str, tell: Callable[[str], object]
) -> Iterator[None]:
    """Feed sinks during the block, and at its end with what is left; `tell` is told what they lack then.

    The experiment need not be there yet.
    """
    if not targets:
        yield
        return
    over = threading.Event()
    lacking: dict[str, tuple[int, str]] = {}
    thread = threading.Thread(
        target=_run, args=(targets, database_url, experiment, over, lacking), name="sinks", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LAST_SECONDS)
        if thread.is_alive():
            tell(f"sinks are slow: what they lack after {LAST_SECONDS:g} s, the next run writes")
        for name, (count, why) in lacking.items():
            tell(f"{name} lacks {count} trials, which the next run writes{f': {why}' if why else ''}")


def _run(
    targets: Sequence[Target],
    database_url: str,
    experiment: str,
    over: threading.Event,
    lacking: dict[str, tuple[int, str]],
) -> None:
    feeder: Feeder | None = None
    with Database(database_url, application_name="shoal sinks") as database:
        while True:
            last = over.wait(LOOK_SECONDS)
            try:
                if feeder is None:
                    feeder = _feeder(targets, database, experiment)
                feeder.step(last=last)
                if last:
                    lacking.update(feeder.missing())
            except StorageError as error:
                logger.debug("sinks wait for the database: %s", error)
            if last:
                return


def _feeder(targets: Sequence[Target], database: Database, name: str) -> Feeder:
    """Raises `ExperimentNotFound` as long as there is none."""
    record = Experiments(database).get(name)
    finished = Finished(database, record.id, seed_key=SEED_KEY)
    return Feeder(targets, origin_of(record), finished, metrics=instruments())


def origin_of(record: ExperimentRecord) -> Origin:
    """An experiment as sinks know it, told from one of the same name in another database."""
    birth = hashlib.sha256(f"{record.id} {record.created_at.isoformat()}".encode()).hexdigest()[:12]
    return Origin(experiment=record.name, birth=birth, metric=str(record.spec.get("metric", "value")))
