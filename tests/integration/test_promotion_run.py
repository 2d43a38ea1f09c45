"""Whole runs in which trials pause at rungs and are promoted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from objectives.base import TrialStart
from objectives.fused.choose import LEAST_GAIN
from objectives.fused.engine import FusedEngine
from search.compare.collect import collect
from search.control.controller import run_experiment
from search.control.crew import Assignment, work
from search.experiment.spec import ExperimentSpec
from storage import queries
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from storage.records import TrialRow
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE

TRIALS, ETA = 81, 3


def rising(config: Mapping[str, float], *, epochs: int) -> list[float]:
    """Curves that never cross: the smaller `x`, the better at every epoch."""
    return [(1 - config["x"]) * (1 - 1 / (epoch + 1)) for epoch in range(1, epochs + 1)]


def run_by(running: Running, *trainers: str) -> list[TrialRow]:
    """All trials by number, after as many workers as trainers have left nothing to do."""
    errors: list[BaseException] = []

    def one(place: int, trainer: str) -> None:
        assignment = Assignment(running.database.url, running.experiment.name, trainer, "cpu")
        try:
            assert work(assignment, f"w{place}", threading.Event()) == "exhausted"
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    threads = [threading.Thread(target=one, args=place) for place in enumerate(trainers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]
    assert check_history(running.database, running.experiment.id, at_rest=True) == []
    return sorted(queries.trials(running.database, running.experiment.id), key=lambda row: row.number)


def reached(rows: Sequence[TrialRow], epoch: int) -> list[int]:
    """The numbers of the trials that trained so far."""
    return [row.number for row in rows if row.epochs >= epoch]


def test_rungs_have_the_sizes_of_the_paper(database: Database) -> None:
    """81 trials that come from best to worst, by two workers: 27, 9, 3 and 1 of them go on."""
    points = [place / TRIALS for place in range(TRIALS)]
    spec = ExperimentSpec.model_validate(
        {
            "experiment": "published",
            "objective": {"function": f"{__name__}:rising", "direction": "maximize", "worst": -1.0},
            "metric": "value",
            "allow_imports": [__name__],
            "fixed": {"epochs": 81},
            "space": {"x": {"low": 0.0, "high": 1.0, "grid": points}},
            "methods": {"grid": {"order": "nested"}},
            "replicates": 1,
            "budget": {"trials": TRIALS},
            "pruner": {"name": "asha_promotion", "min_epochs": 1, "eta": ETA},
            "comparison": {"retrain": {"seeds": 2, "at_least": 1}},
        }
    )
    with prepared(database, spec) as running:
        rows = run_by(running, "plain", "plain")
    assert [row.params["x"] for row in rows] == points
    assert Counter(row.epochs for row in rows).keys() <= {1, 3, 9, 27, 81}
    assert all(row.state == ("complete" if row.epochs == 81 else "pruned") for row in rows)
    here = TRIALS
    for epoch in (3, 9, 27, 81):
        further = reached(rows, epoch)
        # Those that should, and at most one for each trial that two workers may have had in hand.
        assert further[: here // ETA] == list(range(here // ETA))
        assert len(further) <= here // ETA + 4
        here = len(further)
    # Every epoch is counted, and stored, once.
    stored = database.scalar(
        "SELECT count(*) FROM shoal.epochs JOIN shoal.experiment_studies AS study ON study.id = study_id "
        "WHERE role = 'search'"
    )
    assert stored == sum(row.epochs for row in rows)
    # What was never promoted ended together at last, but was paid for when it came to rest.
    (study,) = collect(database, "published").studies
    rested = {trial.number: trial.ended_at for trial in study.trials if trial.state == "pruned"}
    ended = {row.number: row.ended_at for row in rows if row.state == "pruned"}
    assert max(filter(None, rested.values())) < min(filter(None, ended.values()))
    # The best was trained to its end, and again with fresh seeds.
    assert rows[0].value == pytest.approx(81 / 82)
    again = queries.progress(database, running.experiment.id, role="retraining")
    assert [study.complete for study in again] == [2]


@pytest.mark.parametrize("trainers", [(FAKE,), (FOUR_SLOTS, FAKE)], ids=["alone", "two"])
def test_methods_share_trials_that_pause(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainers: tuple[str, ...]
) -> None:
    log = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    spec = small_spec(
        methods={"random": {}, "tpe": {"in_flight": 1}, "gp": {"in_flight": 2}},
        budget={"trials": 10},
        fixed={"epochs": 9},
        pruner={"name": "asha_promotion", "eta": ETA},
    )
    with prepared(database, spec) as running:
        rows = run_by(running, *trainers)
        curves: dict[tuple[int, int], set[str]] = {}
        for point in Curves(database).of_experiment(running.experiment.id):
            told = f"{point.metrics} {point.train_loss} {point.validation_loss}"
            curves.setdefault((point.trial_number, point.epoch), set()).add(told)
    assert Counter(row.state for row in rows)["complete"] >= 3, "each method has a winner"
    assert Counter(row.method for row in rows) == {"random": 10, "tpe": 10, "gp": 10}
    assert all(len(told) == 1 for told in curves.values()), "twins have one curve"
    spent, trained = sum(row.epochs for row in rows), len(log.read_text().splitlines())
    saved = sum(row.shared_epochs for row in rows)
    assert saved > 0
    assert trained < spent
    assert trained >= spent - saved


def digits(**changes: Any) -> ExperimentSpec:
    """Six configs, whose trials rest after epochs 1 and 2 of 4 where they do."""
    return small_spec(
        data={"name": "digits", "limit": 300},
        model={"name": "cnn", "depth": 1, "width": 4, "dense": 8, "dropout": 0.2},
        fixed={"epochs": 4, "batch_size": 32},
        space={
            "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
            "optimizer": ["momentum", "adam"],
        },
        methods={"random": {}},
        **changes,
    )


@pytest.mark.slow
def test_a_promoted_trial_has_the_curve_of_one_that_was_never_interrupted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_GAIN, "cpu", 0.0)  # whatever clocks say
    admitted: list[TrialStart] = []
    admit = FusedEngine.admit

    def noted(engine: FusedEngine, start: TrialStart) -> None:
        admitted.append(start)
        admit(engine, start)

    monkeypatch.setattr(FusedEngine, "admit", noted)

    def curves(spec: ExperimentSpec) -> dict[int, list[tuple[Any, ...]]]:
        outcome = run_experiment(spec, database.url, in_process=True, device="cpu", trainer="fused")
        assert (outcome.state, outcome.reason) == ("finished", "")
        found: dict[int, list[tuple[Any, ...]]] = {}
        for point in Curves(database).of_experiment(Experiments(database).get(spec.experiment).id):
            numbers = (point.train_loss, point.validation_loss, point.gradient_norm, point.metrics)
            found.setdefault(point.trial_number, []).append((point.epoch, *numbers))
        return found

    whole = curves(digits(experiment="whole"))
    assert [len(curve) for curve in whole.values()] == [4] * 6
    assert all(start.checkpoint is None for start in admitted)
    admitted.clear()
    paused = curves(digits(experiment="paused", pruner={"name": "asha_promotion", "eta": 2}))
    lengths = Counter(len(curve) for curve in paused.values())
    assert (sum(lengths.values()), set(lengths) - {1, 2, 4}) == (6, set())
    assert lengths[1] <= 3
    assert lengths[4] >= 1
    for number, curve in paused.items():
        assert curve == whole[number][: len(curve)], number
    went_on = [start for start in admitted if start.checkpoint is not None]
    assert len(admitted) == 6 + len(went_on)
    assert len(went_on) == sum({1: 0, 2: 1, 4: 2}[length] * n for length, n in lengths.items())
