"""A whole run on the fused trainer: the same trials with the same curves as on the plain one."""

from __future__ import annotations

import statistics

import pytest

from objectives.fused.choose import LEAST_GAIN
from search.control.controller import run_experiment
from search.experiment.spec import ExperimentSpec
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from storage.programs import Programs
from storage.queries import trials
from storage.records import EpochRecord
from tests.contracts.experiments import small_spec

TRIALS = 30
EPOCHS = 2


def random_configs(experiment: str) -> ExperimentSpec:
    """Thirty random configs over everything that one program mixes."""
    return small_spec(
        experiment=experiment,
        data={"name": "digits", "limit": 700},
        model={"name": "cnn", "depth": 2, "width": 4, "dense": 16, "padding": "same"},
        fixed={"epochs": EPOCHS, "schedule": "cosine"},
        space={
            "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            "lambda": {"low": 1e-6, "high": 1e-2, "log": True},
            "loss": [
                "cross_entropy",
                "binary_cross_entropy",
                "mse",
                "mae",
                "hinge",
                "multiclass_hinge",
                "focal",
            ],
            "optimizer": ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"],
            "regulariser": ["l2", "elastic_net", "weight_decay"],
            "batch_size": [16, 32, 48, 128],
            "model.dropout": {"low": 0.0, "high": 0.5},
        },
        methods={"random": {}},
        budget={"trials": TRIALS},
    )


def curves_of(database: Database, trainer: str) -> tuple[list[dict[str, object]], list[list[EpochRecord]]]:
    """Each trial's values and its curve, by number, after a run on `trainer`."""
    spec = random_configs(f"on-{trainer}")
    outcome = run_experiment(spec, database.url, in_process=True, device="cpu", trainer=trainer)
    assert outcome.state == "finished"
    rows = sorted(trials(database, Experiments(database).get(spec.experiment).id), key=lambda row: row.number)
    assert [row.state for row in rows] == ["complete"] * TRIALS
    return [row.params for row in rows], [Curves(database).of_trial(row.trial_id) for row in rows]


def ways_of(database: Database, experiment: str) -> dict[int, bool]:
    """Size of batch → whether such trials were fused."""
    decided = Programs(database).of_experiment(Experiments(database).get(experiment).id)
    return {record.batch: record.fused for record in decided}


@pytest.mark.slow
def test_fused_trials_have_the_curves_of_plain_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_GAIN, "cpu", 0.0)  # whatever clocks say
    plain_values, plain = curves_of(database, "plain")
    fused_values, fused = curves_of(database, "fused")
    assert ways_of(database, "on-plain") == {}
    assert ways_of(database, "on-fused") == {32: True, 64: True, 128: True}
    assert plain_values == fused_values
    assert [[epoch.epoch for epoch in curve] for curve in fused] == [[1, 2]] * TRIALS
    losses = [
        abs(a.train_loss - b.train_loss) / abs(a.train_loss)
        for one, other in zip(plain, fused, strict=True)
        for a, b in zip(one, other, strict=True)
        if a.train_loss is not None and b.train_loss is not None
    ]
    accuracies = [
        abs(one[-1].metrics["accuracy"] - other[-1].metrics["accuracy"])
        for one, other in zip(plain, fused, strict=True)
    ]
    # Rounding differs, and adaptive optimizers amplify it: `test_parity` compares with the spread of
    # the plain trainer under another memory layout. A wrong stream of chance would show in every trial.
    assert len(losses) == TRIALS * EPOCHS
    assert statistics.median(losses) < 1e-5
    assert statistics.quantiles(losses, n=10)[-1] < 1e-2
    assert statistics.median(accuracies) == 0
    assert statistics.quantiles(accuracies, n=10)[-1] < 0.02
