"""Optuna's own tests of a storage."""

from __future__ import annotations

from optuna.testing.pytest_storages import StorageTestCase


class TestContract(StorageTestCase):
    """All of them; the fixture `storage` is the one beside this file."""
