"""Ports for tests: none is given twice, and none is one that the system gives."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest

from tests.contracts import ports as module
from tests.contracts.ports import BLOCK, LOWEST, Ports, blocks, free_ports, is_free, system_range


def test_no_block_is_in_the_systems_range() -> None:
    outside = [port for block in blocks(32768, 60999) for port in block]
    assert len(outside) == len(set(outside)) > 10_000
    assert not any(32768 <= port <= 60999 for port in outside)
    assert min(outside) == LOWEST


def test_where_the_system_gives_all_ports_all_are_given() -> None:
    assert len(blocks(1024, 65535)) == len(blocks(1, 2))


def test_none_is_given_twice(tmp_path: Path) -> None:
    ours, others = Ports(tmp_path), Ports(tmp_path)
    given = [*ours.take(BLOCK + 1), *others.take(3), *ours.take(3)]
    assert len(given) == len(set(given)) == BLOCK + 7
    first, last = system_range()
    assert not any(first <= port <= last for port in given)


def test_one_that_is_listened_on_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    assert is_free(port, "127.0.0.1")
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port, "127.0.0.1")
    monkeypatch.setattr(module, "is_free", lambda port, _host: port % 7 == 0)
    assert [port % 7 for port in Ports(tmp_path).take(20)] == [0] * 20


def test_a_block_comes_back_with_the_end_of_who_had_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        (port,) = pool.apply(_take, (tmp_path,))
        (other,) = Ports(tmp_path).take(1)
        assert other >= LOWEST + BLOCK > port
        pool.terminate()
        pool.join()
    assert Ports(tmp_path).take(1) == [port]


_held: list[Ports] = []


def _take(folder: Path) -> list[int]:
    _held.append(Ports(folder))
    return _held[0].take(1)


def test_when_all_are_taken_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HIGHEST", LOWEST + BLOCK)
    monkeypatch.setattr(module, "system_range", lambda: (1, 2))
    with pytest.raises(AssertionError, match="all ports are taken"):
        Ports(tmp_path).take(BLOCK + 1)


def test_a_server_can_listen_on_what_is_given() -> None:
    for port in free_ports(3):
        socket.create_server(("127.0.0.1", port)).close()
