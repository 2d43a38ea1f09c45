"""Experiments whose winners are retrained, run in this process on the fake engine, and what they leave."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial

from search.control.controller import run_experiment
from search.control.events import Event
from search.experiment.spec import ExperimentSpec
from search.trials.claims import Claim
from search.trials.retraining import retraining_name
from storage.checker import check_history
from storage.database import Database
from storage.experiments import Experiments
from storage.records import TestReading
from storage.test_readings import TestReadings
from tests.contracts.experiments import Running, small_spec
from tests.contracts.fake_engine import FOUR_SLOTS

SEEDS = 3
RETRAINED = {"retrain": {"seeds": SEEDS}}


def spec_of(**changes: Any) -> ExperimentSpec:
    return small_spec(**{"comparison": RETRAINED} | changes)


def run(database: Database, spec: ExperimentSpec, trainer: str = FOUR_SLOTS, **options: Any) -> list[Event]:
    events: list[Event] = []
    outcome = run_experiment(
        spec, database.url, trainer=trainer, in_process=True, on_event=events.append, **options
    )
    assert outcome.state == "finished", outcome
    experiment = Experiments(database).get(spec.experiment)
    assert check_history(database, experiment.id, at_rest=True) == []
    return events


def over(database: Database, spec: ExperimentSpec) -> None:
    """Run the searches alone."""
    run(database, spec.model_copy(update={"comparison": small_spec().comparison}))


def readings(database: Database, name: str = "small") -> list[TestReading]:
    return TestReadings(database).of_experiment(Experiments(database).get(name).id)


def retrainings(running: Running, method: str, replicate: int = 0) -> list[FrozenTrial]:
    name = retraining_name(running.spec.study_name(method, replicate))
    return running.storage.get_all_trials(running.storage.get_study_id_from_name(name))


def claims_of(running: Running, wanted: int, **options: Any) -> list[Claim]:
    with running.broker(**options) as broker:
        return broker.claim(wanted)
