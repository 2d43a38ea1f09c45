"""Our rules as pruners of Optuna's: the same verdicts, looking at a study once for a pool."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from search.experiment.settings import (
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    NoPruner,
    PercentileSettings,
    PrunerSettings,
    SuccessiveHalvingSettings,
)
from search.pruning import rungs
from search.pruning.pruners import Direction, build_pruner
from search.pruning.table_pruner import TablePruner
from storage.database import Database
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna_storage import close_optuna_storage, open_optuna_storage

EPOCHS = 6
RULES = [
    NoPruner(),
    MedianSettings(n_startup_trials=2),
    PercentileSettings(percentile=30.0, n_startup_trials=1, n_warmup_steps=2, interval_steps=2),
    AshaSettings(),
]


def decisions(storage: BaseStorage, pruner: BasePruner, direction: Direction) -> list[tuple[object, ...]]:
    """What becomes of random trials, six at a time."""
    study = optuna.create_study(
        study_name="decisions",
        storage=storage,
        direction=direction,
        sampler=RandomSampler(seed=1),
        pruner=pruner,
    )
    chance = random.Random(1)
    for _ in range(3):
        running = [study.ask() for _ in range(6)]
        for step in range(1, EPOCHS + 1):
            for trial in running:
                trial.report(math.nan if chance.random() < 0.05 else round(chance.gauss(0, 1), 1), step)
            stopped = [trial for trial in running if trial.should_prune()]
            for trial in stopped:
                study.tell(trial, state=TrialState.PRUNED)
            running = [trial for trial in running if trial not in stopped]
        for trial in running:
            study.tell(trial, chance.random())
    return [(t.number, t.state, t.intermediate_values.keys(), t.system_attrs) for t in study.trials]


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # Optuna's, of curves without a number
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_says_what_optuna_says(rule: PrunerSettings, direction: Direction) -> None:
    optunas = decisions(InMemoryStorage(), build_pruner(rule, EPOCHS), direction)
    assert decisions(InMemoryStorage(), TablePruner(rule, EPOCHS), direction) == optunas
    if rule.name != "none":
        assert {state.name for _, state, *_ in optunas} == {"COMPLETE", "PRUNED"}


@pytest.fixture
def storage(database: Database) -> ShoalStorage:
    opened = open_optuna_storage(database.url)
    assert isinstance(opened, ShoalStorage)
    return opened


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule.name)
def test_says_so_on_our_storage(rule: PrunerSettings, storage: ShoalStorage) -> None:
    optunas = decisions(InMemoryStorage(), build_pruner(rule, EPOCHS), "minimize")
    assert decisions(storage, TablePruner(rule, EPOCHS), "minimize") == optunas
    close_optuna_storage(storage)


@pytest.mark.parametrize(
    "rule", [SuccessiveHalvingSettings(), HyperbandSettings()], ids=lambda rule: rule.name
)
def test_not_for_rules_that_go_by_arrival(rule: PrunerSettings) -> None:
    with pytest.raises(ValueError, match="the order in which trials are asked about"):
        TablePruner(rule, EPOCHS)


def test_two_studies_are_two_tables() -> None:
    pruner = TablePruner(MedianSettings(n_startup_trials=1), EPOCHS)
    good, bad = (optuna.create_study(study_name=name, pruner=pruner) for name in ("good", "bad"))
    for study, value in ((good, 0.0), (bad, 10.0)):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, value)
    verdicts = []
    for study in (good, bad, good):
        trial = study.ask()
        trial.report(5.0, 1)
        verdicts.append(trial.should_prune())
    assert verdicts == [True, False, True]


def test_a_pool_in_a_batch_is_looked_at_once(storage: ShoalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    update = rungs.RungTable.update

    def counted(table: rungs.RungTable, trials: list[optuna.trial.FrozenTrial]) -> None:
        looks.append(len(trials))
        update(table, trials)

    monkeypatch.setattr(rungs.RungTable, "update", counted)
    pruner = TablePruner(MedianSettings(n_startup_trials=1), EPOCHS)
    study = optuna.create_study(storage=storage, pruner=pruner)
    study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values={1: 0.0, 2: 3.0}))
    with storage.batch():
        pool = [study.ask() for _ in range(4)]
    for step, looked in ((1, [5]), (2, [5, 5])):
        with storage.batch():
            for number, trial in enumerate(pool):
                trial.report(float(number), step)
        with storage.batch():
            verdicts = [trial.should_prune() for trial in pool]
        assert verdicts == [False, True, True, True] if step == 1 else [False] * 4
        assert looks == looked
    with storage.batch():
        assert [trial.should_prune() for trial in pool] == [False] * 4
    assert looks == [5, 5]
    # What this batch has yet to write counts in it.
    with storage.batch():
        pool[0].report(9.0, 3)
        pool[0].should_prune()
        assert looks == [5] * 3
        study.tell(pool[2], 0.0)
        pool[0].should_prune()
    assert looks == [5] * 4
    assert pruner._known[study.study_name].table.complete == 2
    close_optuna_storage(storage)
