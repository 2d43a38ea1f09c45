"""What every ledger promises about readings of the test set: inherited by each ledger's tests."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from storage.checker import check_history
from storage.database import Database
from storage.errors import ValueRefused
from storage.experiments import Experiments
from storage.ledger import Lease, Ledger, ReadingWrite
from storage.test_readings import TestReadings
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of, move_deadline

RETRAINED = f"{STUDY}/retrained"


def reading_of(lease: Lease, **changed: Any) -> ReadingWrite:
    """A reading to write with the ending of a retraining: of trial 7 of the search."""
    fields: dict[str, Any] = {
        "study_name": STUDY,
        "trial_id": 4711,
        "trial_number": 7,
        "config": {"loss": "hinge", "lambda": 1e-4, "batch_size": 32},
        "seed": 2**62 + lease.number,
        "metrics": {"accuracy": 0.91},
        "validation": {"accuracy": 0.92},
        "epochs": 1,
        "images": 10000,
        "seconds": 2.5,
    }
    return ReadingWrite(**fields | changed)


class LedgerReadingsContract:
    """Inherit, and give a fixture `ledger`."""

    @pytest.fixture
    def study(self, optuna_storage: Any, experiment: Any, database: Database) -> optuna.Study:
        Experiments(database).add_study(experiment.id, "tpe", 0, RETRAINED, role="retraining")
        study = optuna.create_study(storage=optuna_storage, study_name=RETRAINED, direction="maximize")
        for index in range(3):
            marks = {"shoal:retrain_seed": index, "shoal:retrain_trial": 4711}
            study.enqueue_trial({"lr": 0.1}, user_attrs=marks)
        return study

    @pytest.fixture
    def ledger(self, database: Database, optuna_storage: Any, study: optuna.Study) -> Ledger:
        raise NotImplementedError

    @pytest.fixture
    def leases(self, ledger: Ledger) -> list[Lease]:
        leases = ledger.claim(RETRAINED, ledger.register("w"), waiting=3, new=0)
        ledger.write(draws=[draw_of(lease) for lease in leases])
        return leases

    @pytest.fixture
    def readings(self, database: Database) -> TestReadings:
        return TestReadings(database)

    @pytest.fixture(autouse=True)
    def history(self, database: Database, experiment: Any) -> Any:
        yield
        assert check_history(database, experiment.id) == []

    def test_a_reading_is_stored_with_the_ending(self, ledger, leases, readings, experiment, study):
        ledger.write(
            epochs=[epoch_of(lease, 1) for lease in leases],
            endings=[end(lease, reading=reading_of(lease)) for lease in leases],
        )
        stored = readings.of_experiment(experiment.id)
        assert [one.retraining_trial_id for one in stored] == [lease.trial_id for lease in leases]
        assert {one.purpose for one in stored} == {"retraining"}
        expected = reading_of(leases[1])
        for name in ReadingWrite.__dataclass_fields__:
            assert getattr(stored[1], name) == getattr(expected, name)
        assert list(stored[1].config) == ["loss", "lambda", "batch_size"]
        assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 3

    def test_a_lost_lease_reads_nothing(self, ledger, leases, readings, experiment, database):
        move_deadline(database, -3600, leases[0].token)
        written = ledger.write(
            epochs=[epoch_of(lease, 1) for lease in leases],
            endings=[end(lease, reading=reading_of(lease)) for lease in leases],
        )
        assert list(written.refused) == [leases[0].token]
        assert [one.seed for one in readings.of_experiment(experiment.id)] == [
            reading_of(lease).seed for lease in leases[1:]
        ]
        ledger.expire(experiment.id)
        (again,) = ledger.claim(RETRAINED, ledger.register("other"), waiting=3, new=0)
        ledger.write(epochs=[epoch_of(again, 1)], endings=[end(again, reading=reading_of(again))])
        assert len(readings.of_experiment(experiment.id)) == 3

    def test_an_ending_said_twice_reads_once(self, ledger, leases, readings, experiment):
        said = [end(lease, reading=reading_of(lease)) for lease in leases]
        ledger.write(epochs=[epoch_of(lease, 1) for lease in leases], endings=said)
        assert len(ledger.write(endings=said).refused) == 3
        assert len(readings.of_experiment(experiment.id)) == 3

    def test_of_a_winners_seed_the_first_reading_stays(self, ledger, leases, readings, experiment):
        """The second trial is a copy that another client made; the third is another winner's."""
        others = [{"seed": 5}, {"seed": 5, "metrics": {"accuracy": 0.99}}, {"seed": 5, "trial_id": 4712}]
        written = ledger.write(
            draws=[draw_of(lease, attributes={"shoal:seed": 5}) for lease in leases],
            epochs=[epoch_of(lease, 1) for lease in leases],
            endings=[
                end(lease, reading=reading_of(lease, **other))
                for lease, other in zip(leases, others, strict=True)
            ],
        )
        assert written.refused == {}
        stored = {(one.trial_id, one.seed): one.metrics for one in readings.of_experiment(experiment.id)}
        assert stored == {(4711, 5): {"accuracy": 0.91}, (4712, 5): {"accuracy": 0.91}}

    @pytest.mark.parametrize("state", ["pruned", "failed", "released", "retry"])
    def test_only_what_is_complete_reads(self, ledger, leases, readings, experiment, state):
        with pytest.raises(ValueRefused):
            ledger.write(endings=[end(leases[0], state, reading=reading_of(leases[0]))])
        assert readings.of_experiment(experiment.id) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"metrics": {"accuracy": math.nan}},
            {"validation": {"accuracy": math.inf}},
            {"seconds": math.nan},
            {"config": {"lr": math.nan}},
        ],
    )
    def test_what_is_not_finite_is_refused(self, ledger, leases, readings, experiment, study, change):
        with pytest.raises(ValueRefused):
            ledger.write(
                epochs=[epoch_of(leases[0], 1)],
                endings=[end(leases[0], reading=reading_of(leases[0], **change))],
            )
        assert readings.of_experiment(experiment.id) == []
        assert {trial.state for trial in study.get_trials()} == {TrialState.RUNNING}

    def test_a_function_has_no_images(self, ledger, leases, readings, experiment):
        ledger.write(
            epochs=[epoch_of(leases[0], 1)], endings=[end(leases[0], reading=reading_of(leases[0], images=0))]
        )
        (stored,) = readings.of_experiment(experiment.id)
        assert stored.images == 0
