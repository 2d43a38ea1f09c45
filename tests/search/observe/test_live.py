"""Metrics of a process: made once, asked at scrapes, served at a port that is free."""

from __future__ import annotations

import logging
import math
import socket
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from search.failures import ExitCode
from search.observe import live
from search.observe.live import (
    PORT_VARIABLE,
    Instruments,
    MetricsError,
    metrics_port,
    serve_metrics,
    serve_metrics_of_actor,
)
from tests.contracts.networks import has_ipv6


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def scrape(port: int | None) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def test_what_is_counted_is_served() -> None:
    live.instruments().counter("shoal_worker_claims_total").inc(3)
    with serve_metrics(0) as port:
        said = scrape(port)
    assert "# HELP shoal_worker_claims_total Trials claimed.\n" in said
    (line,) = [line for line in said.splitlines() if line.startswith("shoal_worker_claims_total ")]
    assert float(line.split()[1]) >= 3
    assert "process_resident_memory_bytes" in said


def ask(address: str, host: str) -> int:
    """The status with which a request is answered that is addressed to a host."""
    place = urlsplit(address)
    assert place.hostname is not None
    connection = HTTPConnection(place.hostname, place.port, timeout=60)
    try:
        connection.request("GET", place.path, headers={"Host": host})
        answer = connection.getresponse()
        assert (b"process_resident_memory_bytes" in answer.read()) is (answer.status == 200)
        return answer.status
    finally:
        connection.close()


BENT = ["evil.example", "evil.example:9095", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", ""]
"""Host headers of pages whose name points at the loopback."""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_the_loopback_a_name_that_was_bent_to_it_is_refused(host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 here")
    with live.listen(live.instruments().registry, 0, host=host, names=["Metrics.Example"]) as address:
        assert [ask(address, bent) for bent in BENT] == [403] * len(BENT)
        for known in ("127.0.0.1:9095", "localhost", "[::1]:9095", "metrics.example"):
            assert ask(address, known) == 200


def test_workers_metrics_are_guarded_as_well() -> None:
    with serve_metrics(0) as port:
        assert ask(f"http://127.0.0.1:{port}/metrics", "evil.example") == 403


def test_where_all_may_connect_all_may_ask() -> None:
    """By whatever name: Prometheus has one of its own for each machine."""
    with live.listen(live.instruments().registry, 0, host="0.0.0.0") as address:
        assert ask(address, "worker.shoal.svc:9096") == 200


def test_nothing_is_served_unless_asked_for() -> None:
    with serve_metrics() as port:
        assert port is None


def test_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORT_VARIABLE, "0")
    with serve_metrics() as port:
        assert scrape(port)


def test_within_a_process_that_serves_nothing_more_is_served() -> None:
    with serve_metrics(0) as port:
        with serve_metrics(0) as again:
            assert again == port
        assert scrape(port), "the inner block has not ended it"
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_port_that_is_taken_is_refused(taken: int) -> None:
    with pytest.raises(MetricsError) as refused, serve_metrics(taken):
        pytest.fail("somebody else has it")
    assert refused.value.failure.code is ExitCode.FAILED
    assert f"port {taken}" in refused.value.failure.what


def test_workers_of_one_machine_take_the_next_port(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORT_VARIABLE, str(taken))
    with serve_metrics_of_actor():
        assert live._Served.port is not None
        assert taken < live._Served.port < taken + live.ACTOR_PORTS


def test_an_actor_works_without_metrics_if_it_must(
    taken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "ACTOR_PORTS", 1)
    monkeypatch.setenv(PORT_VARIABLE, str(taken))
    with serve_metrics_of_actor(), caplog.at_level(logging.WARNING):
        assert live._Served.port is None
    assert "no metrics of this worker" in caplog.text


@pytest.mark.parametrize("value", ["-1", "http", "65536", "9 9"])
def test_a_port_that_is_none_is_bad_input(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PORT_VARIABLE, value)
    with pytest.raises(MetricsError) as refused:
        metrics_port()
    assert refused.value.failure.code is ExitCode.BAD_INPUT


def test_what_cant_be_told_at_the_moment_is_no_number() -> None:
    """The engine's thread may be changing what a scrape asks for."""
    metrics = Instruments()

    def changing() -> float:
        raise RuntimeError("dictionary changed size during iteration")

    metrics.asked("shoal_worker_trials_held", changing)
    value = metrics.registry.get_sample_value("shoal_worker_trials_held")
    assert value is not None
    assert math.isnan(value)


def test_asking_anew_replaces_and_forgetting_ends() -> None:
    metrics = Instruments()
    for number in (1.0, 2.0):
        metrics.asked("shoal_worker_trials_held", lambda number=number: number)
    assert metrics.registry.get_sample_value("shoal_worker_trials_held") == 2
    metrics.forget("shoal_worker_trials_held", "shoal_worker_last_write_seconds")
    assert metrics.registry.get_sample_value("shoal_worker_trials_held") is None
