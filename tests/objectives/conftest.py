"""Fixtures of several test files here: an empty data cache, and a module such as a user would write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from objectives import datasets


@pytest.fixture
def forget_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A cache folder of the test's own, no images in memory before or after, and no network.

    Called, it drops the images that the process keeps once more.
    """

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    def forget() -> None:
        datasets.load.cache_clear()
        datasets._search_images.cache_clear()

    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    forget()
    yield forget
    forget()


@pytest.fixture
def user_module() -> Iterator[ModuleType]:
    """An importable module `users_own`, gone after the test."""
    module = ModuleType("users_own")
    sys.modules["users_own"] = module
    yield module
    del sys.modules["users_own"]
