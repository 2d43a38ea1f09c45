"""`metrics`: what the database says of all experiments, for Prometheus."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

from cyclopts import Parameter

from search import output
from search.commands.options import DatabaseUrl


def metrics(
    *,
    host: Annotated[
        str,
        Parameter(
            help="Address to listen on. There is no login: it shows names and numbers to whoever asks."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = 9095,
    name: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="On the loopback: another host name by which it is asked, as by a proxy; may be repeated.",
        ),
    ] = (),
    once: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Print them once instead, in Prometheus' text format."
        ),
    ] = False,
    database: DatabaseUrl = None,
) -> None:
    """Serve metrics of all experiments to Prometheus until Ctrl-C or SIGTERM; it only reads.

    Any number of scrapes costs the database a few statements every few seconds at most.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from search.observe.exporter import exporter_of
    from search.observe.live import listen
    from storage.database import Database, resolve_url
    from storage.pages import read_only

    registry = CollectorRegistry()
    with Database(
        read_only(resolve_url(database)), application_name="shoal metrics", patience=0
    ) as connection:
        registry.register(exporter_of(connection))
        if once:
            output.text(generate_latest(registry).decode())
            return
        asked_to_go = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: asked_to_go.set())
        try:
            with listen(registry, port, host=host, names=name) as address:
                output.message(f"metrics: {address} (Ctrl-C ends it)")
                asked_to_go.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
