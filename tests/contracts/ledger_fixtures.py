"""A study, a ledger and a worker for the suites that every ledger inherits."""

from __future__ import annotations

from typing import ClassVar

import optuna
import pytest

from storage.checker import check_history
from storage.ledger import Ledger
from tests.contracts.ledger_writes import STUDY


class LedgerFixtures:
    """What the parts of `LedgerContract` have in common."""

    one_transaction: ClassVar[bool] = True
    """Whether a write is all or nothing."""
    cuts: ClassVar[bool] = True
    """Whether points beyond the last epoch of the attempt that ended a trial are dropped."""

    @pytest.fixture
    def study(self, optuna_storage, experiment) -> optuna.Study:
        for name in ("e/random/0", STUDY):
            optuna.create_study(storage=optuna_storage, study_name=name, direction="maximize")
        return optuna.load_study(study_name=STUDY, storage=optuna_storage)

    @pytest.fixture
    def ledger(self, database, optuna_storage, study) -> Ledger:
        raise NotImplementedError

    @pytest.fixture
    def worker(self, ledger) -> int:
        return ledger.register("w")

    @pytest.fixture(autouse=True)
    def history(self, database, experiment):
        """After every test the checker finds nothing wrong."""
        yield
        assert check_history(database, experiment.id) == []
