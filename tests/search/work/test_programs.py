"""Choices that are kept with an experiment hold for all its workers, and no other experiment's."""

from __future__ import annotations

import pytest

import objectives.choices
import storage.programs
from objectives.choices import Choices, ChoicesError
from search.work.programs import StoredChoices
from storage.database import Database
from storage.experiments import Experiments
from storage.records import ExperimentRecord
from tests.contracts.choices_contract import ALONE, FUSED, KEY, ChoicesContract
from tests.contracts.experiments import small_spec


@pytest.fixture
def experiment(database: Database) -> ExperimentRecord:
    return created(database, "one")


def created(database: Database, name: str) -> ExperimentRecord:
    spec = small_spec(experiment=name)
    return Experiments(database).create(name, spec.to_json(), space_hash="0", studies=[], environment={})


class TestStoredChoices(ChoicesContract):
    @pytest.fixture
    def choices(self, database: Database, experiment: ExperimentRecord) -> Choices:
        return StoredChoices(database, experiment.id)


def test_workers_share_choices_and_experiments_do_not(
    database: Database, experiment: ExperimentRecord
) -> None:
    StoredChoices(database, experiment.id).put(KEY, FUSED)
    assert StoredChoices(database, experiment.id).get(KEY) == FUSED
    other = StoredChoices(database, created(database, "other").id)
    assert other.get(KEY) is None
    assert other.put(KEY, ALONE) == ALONE


def test_what_can_not_be_stored_is_an_error_that_engines_know(database: Database) -> None:
    with pytest.raises(ChoicesError, match="no experiment"):
        StoredChoices(database, 999).put(KEY, FUSED)


def test_the_storage_knows_which_choices_are_about_convolutions() -> None:
    """It may not ask: neither package imports the other."""
    assert storage.programs.CONVOLUTIONS == objectives.choices.CONVOLUTIONS
