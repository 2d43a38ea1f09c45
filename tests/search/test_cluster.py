"""Joining a Ray cluster: what can be said without one."""

from __future__ import annotations

import pytest

from search.cluster import unreachable_from


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.9.1", ""])
def test_a_database_of_this_machine_alone_serves_no_other(host: str) -> None:
    url = f"postgresql://me:hunter2@{host}:5432/shoal"
    said = unreachable_from(url, ["10.0.0.7", "10.0.0.8"])
    assert "10.0.0.7" in said
    assert "hunter2" not in said
    assert unreachable_from(url, []) == "", "all workers are here"


@pytest.mark.parametrize("host", ["10.0.0.1", "db.internal", "[fd00::1]"])
def test_one_that_listens_elsewhere_may_do(host: str) -> None:
    assert unreachable_from(f"postgresql://me@{host}/shoal", ["10.0.0.7"]) == ""
