"""Which engine runs an experiment's trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from objectives.base import ObjectiveError, TrialStart
from objectives.imports import ALLOW_VARIABLE
from objectives.plugin import FunctionEngine
from search.examples.analytic import BRANIN_MINIMUM
from search.experiment.spec import load_spec
from search.work.engines import make_engine
from tests.contracts.experiments import small_spec
from tests.contracts.fake_engine import FAKE, FakeEngine

ANALYTIC = Path(__file__).parents[3] / "search" / "examples" / "analytic.yaml"


@pytest.mark.parametrize("name", ["plain", "fused", FAKE])
def test_functions_have_an_engine_of_their_own(name: str) -> None:
    spec = load_spec(ANALYTIC)
    engine = make_engine(spec, name, "cpu")
    assert isinstance(engine, FunctionEngine)
    config = spec.config({"x1": 9.42478, "x2": 2.475})
    engine.admit(TrialStart(trial_id=1, config=config, seed=3, split_seed=0))
    (end,) = [engine.advance() for _ in range(4)][-1]
    assert end.last
    assert end.report.metrics["value"] == pytest.approx(BRANIN_MINIMUM, abs=1.0)


def test_networks_are_trained_by_the_one_that_is_named() -> None:
    assert isinstance(make_engine(small_spec(), FAKE, "cpu"), FakeEngine)
    with pytest.raises(KeyError):
        make_engine(small_spec(), "nowhere", "cpu")


def test_a_worker_takes_no_trials_whose_modules_it_may_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would fail all trials of an experiment that others can run."""
    spec = load_spec(ANALYTIC)
    monkeypatch.setenv(ALLOW_VARIABLE, "elsewhere")
    with pytest.raises(ObjectiveError, match=f"adds search.examples.analytic to {ALLOW_VARIABLE}"):
        make_engine(spec, "fused", "cpu")
    # A module that the file only lists is nobody's concern.
    listed = small_spec(allow_imports=["json"])
    assert isinstance(make_engine(listed, FAKE, "cpu"), FakeEngine)
    monkeypatch.delenv(ALLOW_VARIABLE)
    assert isinstance(make_engine(spec, "fused", "cpu"), FunctionEngine)
