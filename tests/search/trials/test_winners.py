"""Winners retrained by workers: whole runs on the fake engine, in this process, on a real database."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from objectives.base import EpochReport, TrialFailure, TrialStart, derive_seed
from search.compare.analysis import analyse
from search.compare.collect import collect
from search.control import controller as module
from search.control.controller import run_experiment
from search.control.events import Event, Progress
from search.experiment.spec import ExperimentSpec
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.retraining import (
    INDEX_KEY,
    WINNER_ID_KEY,
    WINNER_KEY,
    retraining_name,
    retraining_seed,
    winner,
)
from search.trials.study import SEED_KEY, study_lock
from storage.checker import check_history
from storage.database import Database
from storage.experiments import Experiments
from storage.records import TestReading
from storage.test_readings import TestReadings
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, SCORED_VARIABLE, FakeEngine
from tests.contracts.ledger_contract import move_deadline

SEEDS = 3
RETRAINED = {"retrain": {"seeds": SEEDS}}


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)


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


def readings(database: Database, name: str = "small") -> list[TestReading]:
    return TestReadings(database).of_experiment(Experiments(database).get(name).id)


def retrainings(running: Running, method: str, replicate: int = 0) -> list[FrozenTrial]:
    name = retraining_name(running.spec.study_name(method, replicate))
    return running.storage.get_all_trials(running.storage.get_study_id_from_name(name))


def claims_of(running: Running, wanted: int, **options: Any) -> list[Claim]:
    with running.broker(**options) as broker:
        return broker.claim(wanted)


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


def report_of(epoch: int, value: float = 0.5) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        validation_loss=1.0,
        metrics={"accuracy": value},
        gradient_norm=1.0,
        learning_rate=0.1,
        seconds=0.01,
        images_per_second=10.0,
    )


def _end(broker: Broker, claim: Claim, value: float, epoch: int = 1) -> None:
    said = [Reported(claim, report_of(epoch, value), last=True)]
    assert set(broker.store(said).values()) == {Verdict.FINISH}


def _winners(claims: Sequence[Claim]) -> list[int]:
    return [claim.retrains.trial_number for claim in claims if claim.retrains is not None]


def over(database: Database, spec: ExperimentSpec) -> None:
    """Run the searches alone."""
    run(database, spec.model_copy(update={"comparison": small_spec().comparison}))


class TestClaiming:
    def test_retrainings_alone_read_the_test_set(self, database: Database) -> None:
        spec = spec_of()
        with prepared(database, spec) as running:
            searching = claims_of(running, 12)
        assert len(searching) == 12
        assert not any(claim.start.score_test or claim.retrains for claim in searching)

    def test_what_a_claim_of_a_retraining_says(self, database: Database) -> None:
        spec = spec_of()
        over(database, spec)
        with prepared(database, spec) as running:
            claims = claims_of(running, 99)
            assert len(claims) == 2 * SEEDS
            assert all(claim.start.score_test and claim.retrains for claim in claims)
            for claim in claims:
                index = claim.lease.attributes[INDEX_KEY]
                assert claim.start.seed == retraining_seed(3, 0, index)
                assert claim.start.split_seed == derive_seed(3, 0, "split")
            stored = {trial.user_attrs[SEED_KEY] for trial in retrainings(running, "random")}
            assert stored == {retraining_seed(3, 0, index) for index in range(SEEDS)}
            assert len({claim.folder.path for claim in claims}) == len(claims)
            numbers = {str(trial.number) for trial in running.trials("random")}
            assert not numbers & {claim.folder.path.name for claim in claims}

    def test_searches_come_first(self, database: Database) -> None:
        over(database, small_spec(methods={"random": {}}))
        spec = spec_of(methods={"random": {}}, replicates=2)
        experiments = Experiments(database)
        experiments.grow(experiments.get("small").id, spec.to_json(), spec.studies())
        with prepared(database, spec) as running, running.broker() as broker:
            names = [claim.lease.study_name for claim in broker.claim(8)]
        assert names == ["small/random/1"] * 6 + ["small/random/0/retrained"] * 2

    def test_a_worker_waits_for_the_last_trials_of_others(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 2})
        clock = itertools.count().__next__
        with (
            prepared(database, spec) as running,
            running.broker("a") as other,
            running.broker("b", clock=clock) as broker,
        ):
            held = other.claim(2)
            assert len(held) == 2
            assert broker.claim(1) == []
            assert not broker.exhausted, "a winner will come of them"
            for claim in held:
                other.release(claim)
            other.flush()
            assert len(broker.claim(9)) == 2

    def test_a_search_that_another_client_holds_up_is_not_waited_for(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 1})
        with prepared(database, spec) as running:
            claims_of(running, 1)
            # As if that client had taken it: RUNNING, under no lease.
            running.ledger.retire(1)
            study = optuna.load_study(study_name="small/random/0", storage=running.storage)
            trial = study.ask()
            trial.set_user_attr(SEED_KEY, 1)
            with running.broker() as broker:
                assert broker.claim(1) == []
                assert broker.exhausted

    def test_who_is_looked_at_by_another_is_left_and_waited_for(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        with prepared(database, spec) as running, running.broker() as broker:
            with database.lock(study_lock("small/random/0")):
                assert broker.claim(1) == []
                assert not broker.exhausted
            assert len(broker.claim(9)) == SEEDS
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_two_workers_queue_a_winner_once(self, database: Database) -> None:
        spec = spec_of()
        over(database, spec)
        with prepared(database, spec) as running:
            with running.broker("a") as one, running.broker("b") as other:
                claims = [*one.claim(2), *other.claim(99), *one.claim(99)]
            assert len({claim.lease.trial_id for claim in claims}) == len(claims) == 2 * SEEDS
            assert len(retrainings(running, "grid")) == len(retrainings(running, "random")) == SEEDS

    def test_a_retraining_of_a_former_winner_is_refused(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        with prepared(database, spec) as running:
            with running.broker(retires=True) as broker:
                broker.claim(1)
            study = optuna.load_study(study_name="small/random/0/retrained", storage=running.storage)
            marks = {WINNER_KEY: 0, WINNER_ID_KEY: -1, INDEX_KEY: 0}
            study.enqueue_trial(study.trials[0].params, user_attrs=marks)
            study.enqueue_trial({"learning_rate": 0.5})
            claims = claims_of(running, 9, worker="other")
            assert len(claims) == SEEDS
            refused = [trial for trial in retrainings(running, "random") if trial.state == TrialState.FAIL]
            reasons = [trial.user_attrs["reason"] for trial in refused]
            assert reasons[0].startswith("trial ")
            assert reasons[0].endswith("has become the winner of small/random/0 since")
            assert reasons[1:] == ["is no retraining of a winner"]

    def test_another_winner_is_noticed_with_the_end_that_made_it(self, database: Database) -> None:
        """Also where no study is read again: the clock stands."""
        spec = spec_of(methods={"random": {}}, budget={"trials": 2}, fixed={"epochs": 1})
        with prepared(database, spec) as running, running.broker(clock=lambda: 0.0) as broker:
            first, second = broker.claim(2)
            _end(broker, first, 0.5)
            broker.fail(second, TrialFailure(second.trial_id, "it broke", "here"))
            broker.flush()
            assert [claim.retrains and claim.retrains.trial_number for claim in broker.claim(9)] == [
                0
            ] * SEEDS
            (retried,) = running.ledger.retry_failed(running.experiment.id)
            broker.adopt(spec)
            (again,) = broker.claim(9)
            assert again.lease.number == retried.new_number == 2
            _end(broker, again, 0.9)
            assert [claim.retrains and claim.retrains.trial_number for claim in broker.claim(9)] == [
                2
            ] * SEEDS
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_leases_of_a_retraining_may_be_lost_while_the_search_grows(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        grown = spec_of(methods={"random": {}}, budget={"trials": 7})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(9)
            assert len(claims) == SEEDS
            broker.adopt(grown)
            move_deadline(database, -3600)
            said = [Reported(claim, report_of(1), last=False) for claim in claims]
            assert set(broker.store(said).values()) == {Verdict.TAKEN}
            assert len(broker.lost()) == SEEDS
            (new,) = broker.claim(9)
            assert new.retrains is None
            _end(broker, new, 0.0, epoch=3)
            assert len(broker.claim(9)) == SEEDS, "of the same winner, going on"
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_an_epoch_of_a_retraining_is_never_judged(self, database: Database) -> None:
        pruner = {"name": "median", "n_startup_trials": 0, "n_warmup_steps": 0}
        spec = spec_of(methods={"random": {}}, pruner=pruner)
        over(database, spec)
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(9)
            said = [Reported(claim, report_of(1, 0.0), last=False) for claim in claims]
            assert broker.store(said) == {}
            assert set(broker.judge(said).values()) == {Verdict.CONTINUE}

    def test_an_engine_that_gives_no_score_fails_the_retraining(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        run(database, spec, "tests.search.trials.test_winners:Unscored")
        assert readings(database) == []
        with prepared(database, spec) as running:
            trials: Sequence[FrozenTrial] = retrainings(running, "random")
            assert {trial.state for trial in trials} == {TrialState.FAIL}
            assert {trial.user_attrs["reason"] for trial in trials} == {
                "its trainer gave no score on the test set"
            }


class Unscored(FakeEngine):
    """An engine of somebody who has not heard of scoring."""

    def admit(self, start: TrialStart) -> None:
        super().admit(replace(start, score_test=False))
