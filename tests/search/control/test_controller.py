"""Whole runs of a controller, in this process on the fake engine: finished, grown, refused, stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.control.controller import find_or_create, run_experiment
from search.control.events import Event, Preparing, Progress, Started, Stopping, Trouble
from search.experiment.spec import ExperimentSpec
from search.work.engines import trainer
from storage.curves import Curves
from storage.database import Database
from storage.errors import ExperimentBusy, ExperimentExists
from storage.experiments import Experiments
from storage.optuna_storage import open_optuna_storage
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE, SECONDS_VARIABLE

pytestmark = pytest.mark.usefixtures("quick_looks")


def _run(url: str, spec: ExperimentSpec | None = None, events: list[Event] | None = None, **options: Any):
    seen = events if events is not None else []
    options = {"trainer": FAKE, "in_process": True} | options
    return run_experiment(spec or small_spec(), url, on_event=seen.append, **options)


class TestRun:
    def test_from_nothing_to_finished(self, database: Database) -> None:
        events: list[Event] = []
        outcome = _run(database.url, events=events)
        assert (outcome.state, outcome.reason, outcome.resumed) == ("finished", "", False)
        assert [type(event) for event in events[:3]] == [Preparing, Progress, Started]
        assert [(row.complete, row.trials) for row in outcome.studies] == [(6, 6), (6, 6)]
        last = [event for event in events if isinstance(event, Progress)][-1]
        assert (last.ended, last.trials) == (12, 12)
        experiment = Experiments(database).get("small")
        assert experiment.state == "finished"
        assert len(Curves(database).of_experiment(experiment.id)) == 36
        assert set(experiment.environment["versions"]) >= {"torch", "optuna", "shoal"}

    def test_many_slots_give_the_same_trials(self, database: Database) -> None:
        _run(database.url, small_spec(experiment="one"))
        _run(database.url, small_spec(experiment="four"), trainer=FOUR_SLOTS)
        curves = {}
        for name in ("one", "four"):
            points = Curves(database).of_experiment(Experiments(database).get(name).id)
            curves[name] = {
                (point.study_name.removeprefix(name), point.trial_number, point.epoch): point.metrics
                for point in points
                if "random" in point.study_name
            }
        assert curves["one"] == curves["four"]

    def test_a_deleted_study_fails_the_run_after_the_others_ended(self, database: Database) -> None:
        events: list[Event] = []

        def notice(event: Event) -> None:
            events.append(event)
            if isinstance(event, Started):
                optuna.delete_study(study_name="small/random/0", storage=open_optuna_storage(database.url))

        outcome = run_experiment(small_spec(), database.url, on_event=notice, trainer=FAKE, in_process=True)
        assert outcome.state == "failed"
        assert "deleted from Optuna's tables while the experiment ran: small/random/0;" in outcome.reason
        told = [event.message for event in events if isinstance(event, Trouble)]
        assert [message for message in told if "small/random/0" in message] == [
            f"{outcome.reason}; the other studies go on"
        ]
        assert (outcome.studies[0].study.name, outcome.studies[0].complete) == ("small/grid/0", 6)
        again = _run(database.url)
        assert (again.state, [row.complete for row in again.studies]) == ("finished", [6, 6])

    def test_again_runs_nothing_twice(self, database: Database) -> None:
        _run(database.url)
        outcome = _run(database.url)
        assert (outcome.state, outcome.resumed) == ("finished", True)
        assert sum(row.trials for row in outcome.studies) == 12

    def test_growth_adds_trials_replicates_and_methods(self, database: Database) -> None:
        _run(database.url)
        grown = small_spec(
            budget={"trials": 8}, replicates=2, methods={"grid": {}, "random": {"in_flight": 1}, "tpe": {}}
        )
        outcome = _run(database.url, grown)
        assert {row.study.name: row.complete for row in outcome.studies} == {
            "small/grid/0": 6,
            "small/random/0": 8,
            "small/tpe/0": 8,
            "small/grid/1": 6,
            "small/random/1": 8,
            "small/tpe/1": 8,
        }

    def test_another_space_under_the_same_name_is_refused(self, database: Database) -> None:
        _run(database.url)
        with pytest.raises(ExperimentExists, match=r"seed: was 3 .* now it is 4") as refused:
            _run(database.url, small_spec(seed=4))
        assert refused.value.existing.name == "small"
        assert Experiments(database).get("small").spec["seed"] == 3

    def test_second_controller_is_refused(self, database: Database) -> None:
        spec = small_spec()
        experiment, _ = find_or_create(Experiments(database), spec)
        with (
            Experiments(database).control(experiment),
            pytest.raises(ExperimentBusy, match="another process"),
        ):
            _run(database.url, small_spec(budget={"trials": 50}))
        assert Experiments(database).get("small").spec["budget"]["trials"] == 6

    def test_bayesian_in_flight_one_is_sequential(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"n_startup_trials": 3}}, budget={"trials": 8})
        _run(database.url, spec, trainer=FOUR_SLOTS)
        with prepared(database, spec) as running:
            trials = running.trials("tpe")
        assert all(
            before.datetime_complete <= after.datetime_start for before, after in itertools.pairwise(trials)
        )


SPACE = {"loss": ["cross_entropy"], "learning_rate": [0.01, 0.1, 1.0]}


class TestTrouble:
    def _spec(self, *losses: str, **changes: Any) -> ExperimentSpec:
        sections = {
            "space": SPACE | {"loss": [*SPACE["loss"], *losses]},
            "methods": {"grid": {}},
        }
        return small_spec(**sections | changes)

    def test_failing_trials_are_data(self, database: Database) -> None:
        spec = self._spec("raises", "memory", "diverges")
        outcome = _run(database.url, spec)
        assert outcome.state == "finished"
        (row,) = outcome.studies
        assert (row.complete, row.failed, row.trials) == (6, 6, 12)
        with prepared(database, spec) as running:
            by_loss: dict[str, list[Any]] = {}
            for trial in running.trials("grid"):
                by_loss.setdefault(trial.params["loss"], []).append(trial)
        assert {trial.user_attrs["reason"] for trial in by_loss["raises"]} == {"it raises"}
        assert {trial.state for trial in by_loss["memory"]} == {TrialState.FAIL}
        for trial in by_loss["diverges"]:
            assert (trial.state, trial.value, trial.last_step) == (TrialState.COMPLETE, 0.0, 2)
            assert trial.user_attrs["diverged"]
        assert row.best == max(trial.value for trial in by_loss["cross_entropy"])

    def test_workers_that_cannot_start(self, database: Database) -> None:
        events: list[Event] = []
        outcome = _run(database.url, events=events, trainer="tests.contracts.fake_engine:Missing")
        assert outcome.state == "failed"
        assert "workers died 3 times without progress: AttributeError" in outcome.reason
        assert sum(isinstance(event, Trouble) for event in events) == 3
        assert Experiments(database).get("small").state == "failed"

    def test_unknown_trainer(self) -> None:
        with pytest.raises(KeyError, match="nowhere"):
            trainer("nowhere")


class TestStop:
    def test_asked_from_elsewhere_then_resumed(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`shoal stop`: epochs end, trials are given back; going on trains no epoch twice."""
        log = tmp_path / "epochs.log"
        monkeypatch.setenv(LOG_VARIABLE, str(log))
        monkeypatch.setenv(SECONDS_VARIABLE, "0.3")
        experiments = Experiments(database)
        events: list[Event] = []

        def stop_soon(event: Event) -> None:
            events.append(event)
            if isinstance(event, Progress) and any(row.epochs > 4 for row in event.studies):
                experiments.request_stop(experiments.get("small").id)

        outcome = run_experiment(
            small_spec(), database.url, in_process=True, trainer=FOUR_SLOTS, on_event=stop_soon
        )
        assert outcome.state == "stopped"
        assert any(isinstance(event, Stopping) for event in events)
        assert sum(row.running for row in outcome.studies) == 0
        assert experiments.get("small").state == "stopped"
        first = len(log.read_text().splitlines())
        assert 0 < first < 36
        outcome = _run(database.url, trainer=FOUR_SLOTS)
        assert outcome.state == "finished"
        lines = log.read_text().splitlines()
        assert len(lines) == len(set(lines)) == 36
