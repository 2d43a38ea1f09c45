"""The command for acceptance tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.database import URL_VARIABLE
from tests.contracts.shoal_command import Shoal


@pytest.fixture
def shoal(database_url: str, tmp_path: Path) -> Shoal:
    """`shoal` in an empty folder with an empty database."""
    return Shoal(tmp_path, os.environ | {URL_VARIABLE: database_url, "NO_COLOR": "1"})
