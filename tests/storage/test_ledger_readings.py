"""Readings of the test set through both ledgers, and what asks for a study's role."""

from __future__ import annotations

import optuna
import pytest

from storage import queries
from storage.batched_ledger import BatchedLedger
from storage.curves import Curves
from storage.errors import ValueRefused
from storage.experiments import Experiments
from storage.pages import Pages
from storage.stock_ledger import StockLedger
from tests.contracts.ledger_readings_contract import RETRAINED, LedgerReadingsContract, reading_of
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of


class TestBatchedLedger(LedgerReadingsContract):
    @pytest.fixture
    def ledger(self, database, study) -> BatchedLedger:
        return BatchedLedger(database)


class TestStockLedger(LedgerReadingsContract):
    @pytest.fixture
    def ledger(self, database, optuna_storage, study) -> StockLedger:
        return StockLedger(database, optuna_storage)


@pytest.fixture
def searched_and_retrained(database, optuna_storage, experiment):
    """A trial in the search with the value 0.5, and a retraining with a better one."""
    Experiments(database).add_study(experiment.id, "tpe", 0, RETRAINED, role="retraining")
    ledger = BatchedLedger(database)
    for name, value in ((STUDY, 0.5), (RETRAINED, 0.75)):
        study = optuna.create_study(storage=optuna_storage, study_name=name, direction="maximize")
        study.enqueue_trial({"lr": 0.1})
        (lease,) = ledger.claim(name, ledger.register("w"), waiting=1, new=0)
        read = {"reading": reading_of(lease)} if name == RETRAINED else {}
        ledger.write(
            draws=[draw_of(lease)],
            epochs=[epoch_of(lease, 1, value)],
            endings=[end(lease, value=value, **read)],
        )
    return experiment.id


def test_who_asks_for_the_search_sees_the_search_alone(database, searched_and_retrained):
    number = searched_and_retrained
    assert [row.study.name for row in queries.progress(database, number)] == ["e/random/0", STUDY]
    assert [row.study_name for row in queries.trials(database, number)] == [STUDY]
    assert [row.value for row in queries.best(database, number)] == [0.5]
    assert [study.name for study in Experiments(database).studies(number)] == ["e/random/0", STUDY]
    assert {record.study_name for record in Curves(database).of_experiment(number)} == {STUDY}
    assert len(Curves(database).points(number, "accuracy")) == 1


def test_retrainings_are_seen_by_who_asks_for_them(database, searched_and_retrained):
    number = searched_and_retrained
    (row,) = queries.progress(database, number, role="retraining")
    assert (row.study.name, row.study.role, row.complete, row.best) == (RETRAINED, "retraining", 1, 0.75)
    assert len(queries.progress(database, number, role=None)) == 3
    (study,) = Experiments(database).studies(number, role="retraining")
    assert study == row.study


def test_pages_show_a_retraining_only_where_it_is_asked_for(database, searched_and_retrained):
    number = searched_and_retrained
    pages = Pages(database)
    (shown,) = pages.experiments(limit=5)
    assert (shown.studies, shown.complete, shown.best) == (2, 1, 0.5)
    (study,) = Experiments(database).studies(number, role="retraining")
    assert pages.study(study.id) == study
    for asked, found in ((None, [0.5]), (study.id, [0.75])):
        assert [row.value for row in pages.trials(number, study_id=asked, limit=9)] == found
        assert [one.best for one in pages.improvements(number, asked)] == found
        assert [one.value for one in pages.sample(number, asked, best=5, others=5)] == found


def test_a_study_is_added_once(database, experiment):
    experiments = Experiments(database)
    for _ in range(2):
        experiments.add_study(experiment.id, "tpe", 0, RETRAINED, role="retraining")
    assert [study.role for study in experiments.studies(experiment.id, role=None)] == [
        "search",
        "search",
        "retraining",
    ]
    with pytest.raises(ValueRefused):
        experiments.add_study(experiment.id, "gp", 0, STUDY, role="retraining")
