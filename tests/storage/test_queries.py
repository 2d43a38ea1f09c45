"""Questions over Optuna's tables: the answers agree with Optuna's own."""

from __future__ import annotations

import math
import random
from datetime import UTC

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState
from sqlalchemy import event

from storage import queries
from storage.batched_ledger import BatchedLedger
from storage.database import open_database
from storage.experiments import Experiments
from storage.ledger import Ending, EpochWrite

WORDS = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def suggest(trial: optuna.Trial, chance: random.Random) -> None:
    """All kinds of parameters, one of them conditional."""
    trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)
    if trial.suggest_categorical("optimizer", ["sgd", "momentum", "adam"]) == "momentum":
        trial.suggest_float("optimizer.momentum", 0.0, 0.9, step=0.1)
    trial.suggest_categorical("batch_size", [32, 64, "full", 0.5, True, None])
    trial.suggest_int("model.width", 8, 512, log=True)
    trial.suggest_int("model.depth", 1, 9, step=2)
    if chance.random() < 0.5:
        trial.suggest_float("lambda", 0.0, 1.0)


def fill(study: optuna.Study, seed: int, trials: int = 16) -> None:
    """Trials in every state, one more than asked for, with values that Optuna stores as NULL and a type."""
    chance = random.Random(seed)
    for number in range(trials):
        trial = study.ask()
        suggest(trial, chance)
        for step in range(1, chance.randrange(1, 5)):
            trial.report(chance.choice([chance.random(), math.nan, math.inf, -math.inf]), step)
        fate = number % 8
        if fate == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif fate == 1:
            study.tell(trial, state=TrialState.PRUNED)
        elif fate == 2:
            continue  # stays running
        else:
            study.tell(trial, chance.choice([chance.random(), -chance.random(), 1e300, 5e-324]))
    study.enqueue_trial({"learning_rate": 0.1})


@pytest.fixture
def study(optuna_storage, experiment) -> optuna.Study:
    return optuna.create_study(
        storage=optuna_storage,
        study_name="e/tpe/0",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=1),
    )


def test_trials_agree_with_optuna(database, experiment, study):
    fill(study, seed=1)
    rows = queries.trials(database, experiment.id)
    expected = study.get_trials()
    assert len(rows) == len(expected) == 17
    for row, trial in zip(rows, expected, strict=True):
        assert (row.number, row.trial_id, row.state) == (trial.number, trial._trial_id, WORDS[trial.state])
        assert (row.study_name, row.method, row.replicate) == ("e/tpe/0", "tpe", 0)
        assert row.value == trial.value
        assert dict(row.params) == trial.params
        assert [type(value) for value in row.params.values()] == [type(v) for v in trial.params.values()]
        assert row.epochs == max(trial.intermediate_values, default=0)
        for ours, theirs in ((row.started_at, trial.datetime_start), (row.ended_at, trial.datetime_complete)):
            assert ours == (None if theirs is None else theirs.astimezone(UTC))
    assert {row.state for row in rows} == set(WORDS.values())


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("infinite", [None, math.inf, -math.inf])
def test_progress_and_best_agree_with_optuna(database, experiment, optuna_storage, direction, infinite):
    study = optuna.create_study(storage=optuna_storage, study_name="e/random/0", direction=direction)
    fill(study, seed=2, trials=8)
    if infinite is not None:
        study.add_trial(optuna.trial.create_trial(value=infinite))
    first, second = queries.progress(database, experiment.id)
    counts = dict.fromkeys(WORDS.values(), 0)
    for trial in study.get_trials():
        counts[WORDS[trial.state]] += 1
    assert {word: getattr(first, word) for word in counts} == counts
    assert first.trials == len(study.get_trials())
    assert first.best == study.best_value
    (row,) = queries.best(database, experiment.id)
    assert row.value == study.best_value
    assert (second.study.name, second.trials, second.epochs, second.best) == ("e/tpe/0", 0, 0, None)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_diverged_trial_is_never_the_best(database, experiment, optuna_storage, direction):
    study = optuna.create_study(storage=optuna_storage, study_name="e/random/0", direction=direction)
    diverged = study.ask()
    diverged.set_user_attr("diverged", True)
    study.tell(diverged, 0.5)
    assert queries.progress(database, experiment.id)[0].best is None
    assert queries.best(database, experiment.id) == []
    study.tell(study.ask(), 0.5)
    assert queries.progress(database, experiment.id)[0].best == 0.5
    assert [row.number for row in queries.best(database, experiment.id)] == [1]


def test_the_earlier_of_equal_trials_is_best(database, experiment, study):
    for value in (0.1, 0.7, 0.7):
        study.add_trial(optuna.trial.create_trial(value=value))
    assert [row.number for row in queries.best(database, experiment.id)] == [1]


def test_no_complete_trial_no_best(database, experiment, study):
    study.ask()
    assert queries.best(database, experiment.id) == []
    assert [found.best for found in queries.progress(database, experiment.id)] == [None, None]


def test_our_own_tables_join_in(database, experiment, study, report):
    ledger = BatchedLedger(database)
    worker = ledger.register("w")

    def epoch_of(lease, epoch, **said) -> EpochWrite:
        return EpochWrite(lease=lease, report=report(epoch=epoch, **said), value=0.5)

    (trial,) = ledger.claim("e/tpe/0", worker, waiting=0, new=1)
    ledger.write(epochs=[epoch_of(trial, 1, seconds=0.5)])
    ledger.write(endings=[Ending(lease=trial, state="released", reason="interrupted")])
    (trial, other) = ledger.claim("e/tpe/0", worker, waiting=1, new=1)
    ledger.write(epochs=[epoch_of(trial, epoch, seconds=0.25, diverged=epoch == 2) for epoch in (1, 2)])
    foreign = study.ask()
    ledger.write(endings=[Ending(lease=other, state="retry", reason="shapes differ")])
    foreign.set_user_attr("reason", 'told by "somebody"')
    foreign.set_user_attr("diverged", True)
    study._storage.flush()  # attributes may be sent later
    first, second, third = queries.trials(database, experiment.id)
    assert (first.epochs, first.seconds, first.attempts, first.diverged) == (2, 0.5, 2, True)
    assert (first.reason, second.reason, third.reason) == (None, "shapes differ", 'told by "somebody"')
    assert (second.attempts, second.epochs, second.seconds, second.diverged) == (1, 0, 0.0, False)
    assert (third.attempts, third.diverged) == (0, True)
    found = queries.progress(database, experiment.id)[1]
    assert (found.epochs, found.seconds, found.running, found.waiting) == (2, 0.5, 2, 1)


@pytest.mark.parametrize("wanted", ["maximize", "minimize"])
def test_direction_is_the_studies(database, experiment, optuna_storage, wanted):
    assert queries.direction(database, experiment.id) is None
    optuna.create_study(storage=optuna_storage, study_name="e/random/0", direction=wanted)
    assert queries.direction(database, experiment.id) == wanted


def test_filters_and_pages(database, experiment, study, optuna_storage):
    fill(study, seed=3, trials=8)
    fill(optuna.create_study(storage=optuna_storage, study_name="e/random/0"), seed=4, trials=8)
    everything = queries.trials(database, experiment.id)
    assert [row.method for row in everything] == ["random"] * 9 + ["tpe"] * 9
    tpe = queries.trials(database, experiment.id, method="tpe")
    assert tpe == everything[9:]
    pruned = queries.trials(database, experiment.id, state="pruned")
    assert pruned == [row for row in everything if row.state == "pruned"]
    assert pruned != []
    pages = [queries.trials(database, experiment.id, limit=5, offset=start) for start in range(0, 25, 5)]
    assert [row for page in pages for row in page] == everything
    assert [row.method for row in queries.best(database, experiment.id, method="tpe")] == ["tpe"]
    assert queries.trials(database, experiment.id, method="nobody's") == []


def test_each_question_is_one_statement(database, experiment, study):
    fill(study, seed=5, trials=8)
    statements = []
    event.listen(database.engine, "before_cursor_execute", lambda *details: statements.append(details[2]))
    for question in (queries.progress, queries.trials, queries.best):
        statements.clear()
        question(database, experiment.id)
        assert len(statements) == 1


def test_a_study_that_was_deleted_in_the_dashboard(database, experiment, study):
    fill(study, seed=6, trials=8)
    optuna.delete_study(study_name="e/tpe/0", storage=study._storage)
    assert queries.trials(database, experiment.id) == []
    assert [found.trials for found in queries.progress(database, experiment.id)] == [0, 0]


def test_before_optunas_tables_exist(empty_database_url):
    with open_database(empty_database_url) as database:
        created = Experiments(database).create("e", {}, "", {}, [("tpe", 0, "e/tpe/0")])
        (found,) = queries.progress(database, created.id)
        assert (found.study.name, found.trials, found.best) == ("e/tpe/0", 0, None)
        assert queries.trials(database, created.id) == []
        assert queries.best(database, created.id) == []
        assert queries.direction(database, created.id) is None


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["a", 2, 2.5, True, None]), ["a", 2, 2.5, True, None]),
        (IntDistribution(1, 9, step=2), [1, 9]),
        (IntDistribution(1, 2**40, log=True), [1, 2**40]),
        (FloatDistribution(0.0, 1.0, step=0.1), [0.0, 0.1 + 0.2]),
        (FloatDistribution(1e-300, 1e300, log=True), [1e-300, 1.0]),
    ],
)
def test_parameters_are_decoded_as_optuna_does(distribution, values):
    for value in values:
        stored = distribution.to_internal_repr(value)
        decoded = queries.decode_parameter(stored, distribution_to_json(distribution))
        assert decoded == distribution.to_external_repr(stored)
        assert type(decoded) is type(value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("stored", "text", "value"),
    [
        (3.0, '{"name": "IntUniformDistribution", "attributes": {"low": 1, "high": 9, "step": 1}}', 3),
        (0.5, '{"name": "LogUniformDistribution", "attributes": {"low": 0.1, "high": 1.0}}', 0.5),
        (1.0, '{"type": "categorical", "choices": ["a", "b"]}', "b"),
        (4.0, '{"type": "int", "low": 1, "high": 9}', 4),
    ],
)
def test_older_spellings_of_distributions(stored, text, value):
    decoded = queries.decode_parameter(stored, text)
    assert decoded == value
    assert type(decoded) is type(value)
    assert decoded == optuna.distributions.json_to_distribution(text).to_external_repr(stored)
