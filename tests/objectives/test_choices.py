"""Choices of one process."""

from __future__ import annotations

import pytest

from objectives.choices import Choices, ChoicesInMemory
from tests.contracts.choices_contract import ChoicesContract


class TestChoicesInMemory(ChoicesContract):
    @pytest.fixture
    def choices(self) -> Choices:
        return ChoicesInMemory()
