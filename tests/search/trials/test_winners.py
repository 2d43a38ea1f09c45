"""Winners retrained by workers: whole runs on the fake engine, in this process, on a real database."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from objectives.base import derive_seed
from search.compare.analysis import analyse
from search.compare.collect import collect
from search.control.events import Progress
from search.experiment.spec import ExperimentSpec
from search.trials.retraining import WINNER_KEY, winner
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, SCORED_VARIABLE
from tests.search.trials.retrained_runs import RETRAINED, SEEDS, readings, retrainings, run, spec_of

pytestmark = pytest.mark.usefixtures("quick_looks")


class TestRun:
    def test_every_winner_is_retrained_with_every_seed(self, database: Database) -> None:
        spec = spec_of(replicates=2)
        run(database, spec)
        found = readings(database)
        assert len(found) == 4 * SEEDS
        assert {one.purpose for one in found} == {"retraining"}
        with prepared(database, spec) as running:
            for method, replicate, name in spec.studies():
                best = winner(running.trials(method, replicate), "maximize")
                assert best is not None
                mine = [one for one in found if one.study_name == name]
                assert {(one.trial_number, one.trial_id) for one in mine} == {(best.number, best._trial_id)}
                assert {one.seed for one in mine} == {
                    derive_seed(3, replicate, "retrain", index) for index in range(SEEDS)
                }
                for one in mine:
                    assert best.params.items() <= dict(one.config).items()
                    assert one.config["epochs"] == one.epochs == 3
                    assert one.metrics["accuracy"] == pytest.approx(one.validation["accuracy"] - 0.01)
                trials = retrainings(running, method, replicate)
                assert [trial.state for trial in trials] == [TrialState.COMPLETE] * SEEDS
                assert [trial.params for trial in trials] == [best.params] * SEEDS
                assert {trial._trial_id for trial in trials} == {one.retraining_trial_id for one in mine}
                assert [trial.user_attrs[WINNER_KEY] for trial in trials] == [best.number] * SEEDS

    def test_it_is_the_outcome_of_the_report(self, database: Database) -> None:
        run(database, spec_of(replicates=2))
        comparison = collect(database, "small")
        assert len(comparison.readings) == 4 * SEEDS
        assert [len(study.trials) for study in comparison.studies] == [6] * 4
        primary = analyse(comparison).primary
        assert (primary.kind, primary.retrained, primary.to_retrain) == ("retrained", 4, 4)

    def test_the_same_as_one_after_the_other(self, database: Database) -> None:
        found = {}
        for name, trainer in (("one", FAKE), ("four", FOUR_SLOTS)):
            run(database, spec_of(experiment=name, methods={"random": {}}), trainer)
            found[name] = {(one.trial_number, one.seed): one.metrics for one in readings(database, name)}
        assert found["one"] == found["four"]
        assert len(found["one"]) == SEEDS

    def test_again_reads_nothing_twice(self, database: Database) -> None:
        run(database, spec_of())
        before = readings(database)
        run(database, spec_of())
        assert readings(database) == before

    def test_seeds_may_be_added(self, database: Database) -> None:
        run(database, small_spec())
        assert readings(database) == []
        run(database, spec_of())
        first = readings(database)
        assert len(first) == 2 * SEEDS
        run(database, spec_of(comparison={"retrain": {"seeds": SEEDS + 2}}))
        later = readings(database)
        assert later[: len(first)] == first
        assert len(later) == 2 * (SEEDS + 2)
        assert len({(one.study_name, one.seed) for one in later}) == len(later)

    def test_no_seeds_no_readings(self, database: Database, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setenv(SCORED_VARIABLE, str(tmp_path / "scored"))
        run(database, small_spec())
        assert not (tmp_path / "scored").exists()
        experiment = Experiments(database).get("small")
        assert Experiments(database).studies(experiment.id, role="retraining") == []

    def test_the_test_set_is_read_once_per_retraining(
        self, database: Database, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv(SCORED_VARIABLE, str(tmp_path / "scored"))
        run(database, spec_of())
        assert len((tmp_path / "scored").read_text().splitlines()) == 2 * SEEDS

    def test_with_a_pruner_winners_are_trained_to_their_end(self, database: Database) -> None:
        pruner = {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 0}
        spec = spec_of(pruner=pruner, methods={"random": {}}, budget={"trials": 12})
        run(database, spec)
        with prepared(database, spec) as running:
            assert TrialState.PRUNED in {trial.state for trial in running.trials("random")}
            assert [trial.last_step for trial in retrainings(running, "random")] == [3] * SEEDS
        assert len(readings(database)) == SEEDS

    def test_a_budget_of_epochs_ends_the_search_and_not_the_retraining(self, database: Database) -> None:
        spec = spec_of(budget={"trials": 6, "epochs": 7})
        run(database, spec)
        assert Counter(one.study_name for one in readings(database)) == {
            "small/grid/0": SEEDS,
            "small/random/0": SEEDS,
        }

    def test_a_search_without_a_winner_has_none(self, database: Database) -> None:
        spec = spec_of().model_copy(update={"fixed": {"epochs": 3, "loss": "diverges"}})
        run(database, spec)
        assert readings(database) == []
        experiment = Experiments(database).get("small")
        assert Experiments(database).studies(experiment.id, role="retraining") == []

    def test_progress_tells_of_it(self, database: Database) -> None:
        events = run(database, spec_of())
        last = [event for event in events if isinstance(event, Progress)][-1]
        assert [(row.study.name, row.complete) for row in last.retraining] == [
            ("small/grid/0/retrained", SEEDS),
            ("small/random/0/retrained", SEEDS),
        ]
        assert (last.ended, last.trials) == (12, 12)

    def test_a_function_of_the_users_own_is_retrained_too(self, database: Database) -> None:
        sections = {
            "experiment": "analytic",
            "objective": {
                "function": "search.examples.analytic:branin",
                "direction": "minimize",
                "worst": 400,
            },
            "metric": "value",
            "allow_imports": ["search.examples.analytic"],
            "fixed": {"epochs": 2},
            "space": {"x1": {"low": -5.0, "high": 10.0}, "x2": {"low": 0.0, "high": 15.0}},
            "methods": {"random": {}},
            "replicates": 2,
            "budget": {"trials": 4},
            "comparison": RETRAINED,
        }
        run(database, ExperimentSpec.model_validate(sections), "plain")
        found = readings(database, "analytic")
        assert len(found) == 2 * SEEDS
        assert {one.images for one in found} == {0}
        assert len({one.metrics["value"] for one in found}) > 2, "fresh seeds, fresh noise"
        assert analyse(collect(database, "analytic")).primary.kind == "retrained"


class TestGrowth:
    def test_another_winner_is_retrained_and_the_former_counts_no_more(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 2})
        run(database, spec)
        (former,) = {one.trial_number for one in readings(database)}
        grown = spec_of(methods={"random": {}}, budget={"trials": 12})
        run(database, grown)
        with prepared(database, grown) as running:
            best = winner(running.trials("random"), "maximize")
            assert best is not None
            assert best.number != former, "the seed of this test makes a later trial the winner"
            assert len(retrainings(running, "random")) == 2 * SEEDS
        counts = Counter(one.trial_number for one in readings(database))
        assert counts == {former: SEEDS, best.number: SEEDS}
        (study,) = analyse(collect(database, "small")).studies
        assert study.retrained is not None
        assert (study.retrained.trial, len(study.retrained.seeds)) == (best.number, SEEDS)

    def test_a_winner_that_stays_is_not_retrained_again(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 12})
        run(database, spec)
        before = readings(database)
        with prepared(database, spec) as running:
            best = winner(running.trials("random"), "maximize")
        grown = spec_of(methods={"random": {}}, budget={"trials": 13})
        run(database, grown)
        with prepared(database, grown) as running:
            assert winner(running.trials("random"), "maximize") == best
        assert readings(database) == before
