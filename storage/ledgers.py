"""Which ledger writes a database: our own over Optuna's tables where we know them, else the stock one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.batched_ledger import BatchedLedger
from storage.database import OPTUNA_REVISION, Database

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from storage.ledger import Ledger


def ledger_of(database: Database, storage: BaseStorage) -> Ledger:
    """The ledger for a database and the Optuna storage that is open on it.

    Ours where Optuna's tables have the revision that its statements were written for. Raises
    `DatabaseUnreachable`.
    """
    if database.optuna_revision() == OPTUNA_REVISION:
        return BatchedLedger(database, storage)
    from storage.stock_ledger import StockLedger

    return StockLedger(database, storage)
