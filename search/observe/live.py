"""Live metrics of a process: counters in memory, and numbers that are asked for when somebody scrapes.

Nothing here waits for anything: what a worker counts, it counts at the ends of epochs and around calls
to the database, and what an engine knows of itself is read by the thread that answers a scrape.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

from search.failures import CommandError, ExitCode, Failure
from search.observe.metrics import METRICS
from search.serve.guard import admission, is_loopback, only_for
from search.serve.listening import bound

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import WSGIApplication

    from prometheus_client.metrics import MetricWrapperBase

logger = logging.getLogger(__name__)

M = TypeVar("M", Counter, Gauge, Histogram)

PORT_VARIABLE, HOST_VARIABLE = "SHOAL_METRICS_PORT", "SHOAL_METRICS_HOST"
HOST = "127.0.0.1"
"""Metrics tell names of experiments and machines, so others are shown them only if asked for."""
REFUSAL = "These metrics answer to local names, and to those that `shoal metrics --name` says."
ACTOR_PORTS = 64
"""Workers of one machine share a range of so many ports, each the first that is free."""


class MetricsError(CommandError):
    """Metrics can't be served as asked."""


class Instruments:
    """The metrics of a process, each made when it is first used. May be shared by threads."""

    def __init__(self) -> None:
        # A second series for each counter that says when it began: nobody here asks for that.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._made: dict[str, MetricWrapperBase] = {}

    def counter(self, name: str, *labels: str) -> Counter:
        """A counter with the values of its labels."""
        if name not in self._made:
            metric = METRICS[name]
            self._made[name] = Counter(name, metric.help, metric.labels, registry=self.registry)
        return _child(self._made[name], Counter, labels)

    def start(self, name: str, *values: str) -> None:
        """Tell of a counter with one label, for each of its values, before anything was counted."""
        for value in values:
            self.counter(name, value)

    def gauge(self, name: str, *labels: str) -> Gauge:
        """A gauge with the values of its labels."""
        if name not in self._made:
            metric = METRICS[name]
            self._made[name] = Gauge(name, metric.help, metric.labels, registry=self.registry)
        return _child(self._made[name], Gauge, labels)

    def histogram(self, name: str, *labels: str) -> Histogram:
        """A histogram with the values of its labels."""
        if name not in self._made:
            metric = METRICS[name]
            self._made[name] = Histogram(
                name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets
            )
        return _child(self._made[name], Histogram, labels)

    def asked(self, name: str, ask: Callable[[], float], *labels: str) -> None:
        """A gauge whose value is asked for at each scrape, in the scrape's thread.

        What can't be told at that moment is NaN: another thread may be changing it.
        """

        def answer() -> float:
            try:
                return ask()
            except (RuntimeError, OSError):
                return float("nan")

        self.gauge(name, *labels).set_function(answer)

    def forget(self, *names: str) -> None:
        """Tell no more of these: what they were about has ended."""
        for name in names:
            made = self._made.pop(name, None)
            if made is not None:
                self.registry.unregister(made)


def _child(made: MetricWrapperBase, kind: type[M], labels: tuple[str, ...]) -> M:
    assert isinstance(made, kind), "one name, one kind"
    return made.labels(*labels) if labels else made


@cache
def instruments() -> Instruments:
    """Those of this process."""
    return Instruments()


def metrics_port() -> int | None:
    """What `SHOAL_METRICS_PORT` says; None if nothing. Raises `MetricsError`."""
    given = os.environ.get(PORT_VARIABLE, "").strip()
    if not given:
        return None
    if not given.isdecimal() or int(given) > 65535:
        what = f"{PORT_VARIABLE} is {given!r}; it is a port, or 0 for a free one"
        raise MetricsError(Failure(ExitCode.BAD_INPUT, "bad_input", what))
    return int(given)


class _Served:
    """Whether this process serves its metrics already."""

    port: int | None = None


@contextmanager
def serve_metrics(port: int | None = None, *, span: int = 1) -> Iterator[int | None]:
    """Serve this process's metrics in the block, at the first free of `span` ports; yields the port.

    `port` None: as `SHOAL_METRICS_PORT` says, and nothing is served if it says nothing; 0: any free
    one. On the loopback unless `SHOAL_METRICS_HOST` names another address. Within a block that serves
    already, nothing more is done. Raises `MetricsError` if none of the ports can be had.
    """
    wanted = metrics_port() if port is None else port
    if wanted is None or _Served.port is not None:
        yield _Served.port
        return
    host = os.environ.get(HOST_VARIABLE, "").strip() or HOST
    with listen(instruments().registry, wanted, host=host, span=span) as address:
        _Served.port = urlsplit(address).port
        logger.info("metrics are served at %s", address)
        try:
            yield _Served.port
        finally:
            _Served.port = None


@contextmanager
def serve_metrics_of_actor() -> Iterator[None]:
    """For processes that others start by the dozen: as `serve_metrics`, but a taken port stops nobody."""
    with ExitStack() as stack:
        try:
            stack.enter_context(serve_metrics(span=ACTOR_PORTS))
        except MetricsError as error:
            logger.warning("no metrics of this worker: %s", error)
        yield


@contextmanager
def listen(
    registry: CollectorRegistry, port: int, *, host: str, span: int = 1, names: Iterable[str] = ()
) -> Iterator[str]:
    """Serve a registry in the block, in threads, at the first free of `span` ports; yields its address.

    On the loopback it answers to this machine's local names alone, and to `names`: a page elsewhere that
    points its own host name there (DNS rebinding) gets a 403. Elsewhere whoever may connect may read.
    Raises `MetricsError` if none of the ports can be had.
    """
    application: WSGIApplication = make_wsgi_app(registry)
    if is_loopback(host):
        application = only_for(admission(host, None, names).knows, application, REFUSAL)
    server = _bind(application, port, host, span)
    thread = threading.Thread(target=server.serve_forever, name="shoal metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bind(application: WSGIApplication, first: int, host: str, span: int) -> WSGIServer:
    why = "there is no such port"
    for port in range(first, min(first + span, 65536)):
        try:
            return bound(host, port, application)
        except OSError as error:
            why = error.strerror or str(error)
    ports = str(first) if span == 1 else f"{first} to {first + span - 1}"
    what = f"can't serve metrics at {host}, port {ports}"
    raise MetricsError(Failure(ExitCode.FAILED, "address", what, why, "port 0 takes a free one"))
