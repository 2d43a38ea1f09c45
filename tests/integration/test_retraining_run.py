"""Winners retrained by real processes, some of which are killed; and by the real engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from objectives.base import derive_seed
from objectives.trainer import score_on_test
from search.compare.analysis import analyse
from search.compare.collect import collect
from search.control.controller import run_experiment
from search.control.crew import Assignment
from search.experiment.spec import ExperimentSpec
from storage.checker import check_history
from storage.database import Database
from storage.experiments import Experiments
from storage.records import TestReading
from storage.test_readings import TestReadings
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS
from tests.contracts.hold import Hold
from tests.contracts.processes import PATIENCE, outcome_of, start_run, until, worker_process

pytestmark = pytest.mark.slow

SEEDS = 5


def spec_of(**changes: Any) -> ExperimentSpec:
    return small_spec(**{"comparison": {"retrain": {"seeds": SEEDS}}, "replicates": 2} | changes)


def readings(database: Database, name: str = "small") -> list[TestReading]:
    known = {record.name: record.id for record in Experiments(database).list()}
    return TestReadings(database).of_experiment(known[name]) if name in known else []


def exact(database: Database, spec: ExperimentSpec) -> None:
    """Each study has a reading per fresh seed, of one trial, and nothing happened that must not."""
    found = readings(database)
    assert Counter(one.study_name for one in found) == {name: SEEDS for _, _, name in spec.studies()}
    assert len({(one.study_name, one.trial_id, one.seed) for one in found}) == len(found)
    assert len({(one.study_name, one.trial_id) for one in found}) == len(spec.studies())
    experiment = Experiments(database).get(spec.experiment)
    assert check_history(database, experiment.id, at_rest=True) == []
    assert analyse(collect(database, spec.experiment)).primary.kind == "retrained"


@pytest.mark.parametrize("trainer", [FAKE, FOUR_SLOTS])
def test_killed_while_it_retrains_it_goes_on_to_the_exact_number(
    database: Database, tmp_path: Path, trainer: str
) -> None:
    spec = spec_of()
    hold = Hold(tmp_path / "hold")
    # 24 trials of three epochs, and as many epochs of retraining as end at least one and not all twenty.
    hold.at(24 * 3 + 12)
    run = start_run(database.url, spec.to_json(), trainer=trainer, **hold.environment())
    until(lambda: readings(database), run=run)
    run.kill()
    run.communicate()
    before = readings(database)
    assert 0 < len(before) < 4 * SEEDS, "it was killed in the middle"
    assert outcome_of(start_run(database.url, spec.to_json(), trainer=trainer))["state"] == "finished"
    assert readings(database)[: len(before)] == before
    exact(database, spec)


@pytest.mark.parametrize(
    "where",
    [
        "ledger.write.before:kill@4",
        "ledger.write.committed:kill@4",
        "ledger.claim.committed:kill@2",
        "retraining.noted:kill@2",
        "retraining.made:kill@2",
    ],
)
def test_killed_at_an_exact_moment_of_the_retraining(database: Database, where: str) -> None:
    searched = small_spec(replicates=2)
    assert outcome_of(start_run(database.url, searched.to_json(), trainer=FOUR_SLOTS))["state"] == "finished"
    assert readings(database) == []
    spec = spec_of()
    run = start_run(database.url, spec.to_json(), trainer=FOUR_SLOTS, SHOAL_FAILPOINTS=where)
    _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == -9, errors
    assert outcome_of(start_run(database.url, spec.to_json(), trainer=FOUR_SLOTS))["state"] == "finished"
    exact(database, spec)


def test_six_workers_retrain_every_winner_once(database: Database) -> None:
    spec = spec_of()
    with prepared(database, spec) as running:
        assignment = Assignment(database.url, running.experiment.name, FAKE, "cpu")
        processes = [worker_process(assignment, f"w{number}") for number in range(6)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0] * 6
    exact(database, spec)


@pytest.mark.parametrize("trainer", ["plain", "fused"])
def test_the_engines_score_what_one_training_by_hand_scores(database: Database, trainer: str) -> None:
    spec = spec_of(
        methods={"random": {}},
        replicates=1,
        budget={"trials": 2},
        comparison={"retrain": {"seeds": 2}},
        model={"name": "cnn", "depth": 1, "width": 4, "dense": 8},
    )
    outcome = run_experiment(spec, database.url, in_process=True, device="cpu", trainer=trainer)
    assert outcome.state == "finished"
    found = readings(database)
    assert len(found) == 2
    for one in found:
        values = {name: one.config[name] for name in spec.space}
        expected = score_on_test(
            spec.task(), spec.config(values), one.seed, derive_seed(spec.seed, 0, "split")
        )
        assert one.images == expected.images
        assert one.metrics == pytest.approx(dict(expected.metrics), rel=1e-4)
        assert one.validation == pytest.approx(dict(expected.validation), rel=1e-4)
