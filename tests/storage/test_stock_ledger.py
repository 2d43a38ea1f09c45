"""The ledger over any Optuna storage."""

from __future__ import annotations

import pytest

from storage.stock_ledger import StockLedger
from tests.contracts.ledger_contract import LedgerContract


class TestStockLedger(LedgerContract):
    one_transaction = False
    cuts = False

    @pytest.fixture
    def ledger(self, database, optuna_storage, study) -> StockLedger:
        return StockLedger(database, optuna_storage)
