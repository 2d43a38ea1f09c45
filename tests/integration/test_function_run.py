"""A whole run of a function of the user's own: the shipped example, and one that fails and diverges."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from search.compare.collect import collect
from search.control.controller import run_experiment
from search.examples.analytic import branin_value
from search.experiment.spec import ExperimentSpec, load_spec, read_spec
from storage.database import Database
from storage.experiments import Experiments
from storage.queries import trials
from storage.records import TrialRow

EXAMPLE = Path(__file__).parents[2] / "search" / "examples" / "analytic.yaml"


def run(database: Database, spec: ExperimentSpec) -> list[TrialRow]:
    """Every trial of the experiment, after a run in this process."""
    outcome = run_experiment(spec, database.url, in_process=True, device="cpu")
    assert (outcome.state, outcome.reason) == ("finished", "")
    rows = trials(database, Experiments(database).get(spec.experiment).id)
    return sorted(rows, key=lambda row: (row.study_name, row.number))


def test_the_example_runs_and_compares_what_it_says(database: Database) -> None:
    spec = load_spec(EXAMPLE).model_copy(update={"replicates": 4})
    rows = run(database, spec)
    assert len(rows) == 3 * 4 * 25
    assert {row.state for row in rows} == {"complete"}
    assert {row.epochs for row in rows} == {4}
    # The last epoch's noise has standard deviation 4 / 2⁴ = 0.25.
    errors = [row.value - branin_value(row.params["x1"], row.params["x2"]) for row in rows]
    assert statistics.mean(errors) == pytest.approx(0, abs=0.06)
    assert statistics.stdev(errors) == pytest.approx(0.25, rel=0.2)
    for replicate in range(4):
        grid = [row.params for row in rows if (row.method, row.replicate) == ("grid", replicate)]
        assert sorted(map(str, grid)) == sorted(map(str, spec.grid_points(replicate)))
    comparison = collect(database, spec.experiment)
    assert (comparison.metric, comparison.direction) == ("value", "minimize")
    curve = comparison.studies[0].trials[0].curve
    assert [point.epoch for point in curve] == [1, 2, 3, 4]
    assert all(point.value is not None for point in curve)


def test_running_the_example_again_adds_nothing(database: Database) -> None:
    spec = load_spec(EXAMPLE).model_copy(update={"replicates": 1})
    first = run(database, spec)
    assert [(row.number, row.value) for row in run(database, spec)] == [
        (row.number, row.value) for row in first
    ]


def awkward(config: dict[str, float], *, epochs: int) -> list[float]:
    """Diverges at its second epoch on the left, fails on the right."""
    if config["x"] > 0.8:
        raise RuntimeError("too far to the right")
    return [config["x"], math.inf if config["x"] < 0.2 else config["x"], *[config["x"]] * (epochs - 2)]


def test_divergence_and_failure_are_told_as_of_networks(database: Database) -> None:
    written = {
        "experiment": "awkward",
        "objective": {"function": f"{__name__}:awkward", "direction": "maximize", "worst": -1},
        "metric": "height",
        "allow_imports": [__name__],
        "fixed": {"epochs": 3},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "methods": {"grid": {"levels": "centred"}},
        "replicates": 1,
        "budget": {"trials": 10},
    }
    rows = run(database, read_spec(json.dumps(written), folder=Path("/nowhere")))
    by_place = {round(row.params["x"], 2): row for row in rows if row.state != "failed" or row.params}
    diverged = [by_place[x] for x in (0.05, 0.15)]
    assert [(row.state, row.value, row.diverged, row.epochs) for row in diverged] == [
        ("complete", -1.0, True, 2)
    ] * 2
    assert all(by_place[x].value == pytest.approx(x) for x in (0.25, 0.35, 0.45, 0.55, 0.65, 0.75))
    failed = [row for row in rows if row.state == "failed"]
    assert {round(row.params["x"], 2) for row in failed} == {0.85, 0.95}
    assert all("too far to the right" in str(row.reason) for row in failed)
