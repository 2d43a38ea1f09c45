"""Trials that several methods draw are trained once: workers on a real database, every epoch counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.compare.collect import collect
from search.compare.execution import shared_in_words
from search.control.crew import Assignment, work
from search.sampling.chance import NamedRandomSampler
from search.trials.claims import Reported
from search.trials.sharing import may_be_common
from storage import queries
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE
from tests.contracts.wire import Wire, wired
from tests.search.trials.sharing_hands import SHARING, hands, row_of, shared_spec, sound


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every epoch that is trained is written down."""
    path = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(path))
    return path


def run(running: Running, *trainers: str) -> None:
    """As many workers as trainers, until nothing is left."""

    def one(place: int, trainer: str) -> None:
        assignment = Assignment(running.database.url, running.experiment.name, trainer, "cpu")
        try:
            work(assignment, f"w{place}", threading.Event())
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=one, args=place) for place in enumerate(trainers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]


def curves(running: Running) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    """What every trial said at every epoch."""
    return {
        (point.study_name.split("/", 1)[1], point.trial_number, point.epoch): (
            point.metrics,
            point.train_loss,
            point.validation_loss,
            point.gradient_norm,
            point.learning_rate,
            point.diverged,
        )
        for point in Curves(running.database).of_experiment(running.experiment.id)
    }


def trained(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("trainers", [[FAKE], [FOUR_SLOTS], [FAKE] * 3, [FOUR_SLOTS, FAKE]])
def test_what_methods_share_is_trained_once(database: Database, log: Path, trainers: Sequence[str]) -> None:
    with prepared(database, shared_spec()) as running:
        run(running, *trainers)
        assert len(trained(log)) == 3 * (12 + 2 + 2), "ten of twelve trials are those of random search"
        rows = queries.trials(database, running.experiment.id)
        assert Counter((row.method, row.state) for row in rows) == dict.fromkeys(
            [("random", "complete"), ("tpe", "complete"), ("gp", "complete")], 12
        )
        assert {row.epochs for row in rows} == {3}
        assert check_history(database, running.experiment.id, at_rest=True) == []
        together = curves(running)
    log.unlink()
    alone = {}
    for method, settings in SHARING.items():
        with prepared(database, shared_spec(experiment=method, methods={method: settings})) as running:
            run(running, FAKE)
            alone |= curves(running)
    assert len(trained(log)) == 3 * 36
    assert together == alone


def test_shared_trials_are_told_and_cost_what_they_would_have_cost(database: Database, log: Path) -> None:
    with prepared(database, shared_spec()) as running:
        run(running, FOUR_SLOTS)
        rows = {(row.method, row.number): row for row in queries.trials(database, running.experiment.id)}
    told = {place: (row.shared_with, row.shared_epochs) for place, row in rows.items() if row.shared_with}
    # Which of three is trained is a matter of time; that it is one of them is not.
    assert len(told) == 2 * 10
    for number in range(10):
        of_number = {method: told.get((method, number)) for method in SHARING}
        (trained_one,) = [method for method, said in of_number.items() if said is None]
        assert set(of_number.values()) <= {None} | {(f"small/{method}/0", 3) for method in SHARING}
        seconds = {rows[method, number].seconds for method in SHARING}
        assert seconds == {rows[trained_one, number].seconds}
    outcomes = collect(database, "small")
    assert sum(trial.shared_epochs for study in outcomes.studies for trial in study.trials) == 60
    assert "60 epochs that are counted were not trained" in shared_in_words(outcomes)


@pytest.mark.parametrize("workers", [1, 3])
def test_with_a_pruner_every_study_judges_for_itself(database: Database, log: Path, workers: int) -> None:
    spec = shared_spec(pruner={"name": "asha", "eta": 2}, fixed={"epochs": 4})
    with prepared(database, spec) as running:
        run(running, *[FOUR_SLOTS] * workers)
        rows = queries.trials(database, running.experiment.id)
        assert Counter(row.state for row in rows) >= Counter(complete=3, pruned=3)
        assert {row.state for row in rows} == {"complete", "pruned"}
        assert check_history(database, running.experiment.id, at_rest=True) == []
        told = curves(running)
    assert [row.epochs for row in rows if row.state == "complete"] == [4] * sum(
        row.state == "complete" for row in rows
    )
    same = Counter((place[1], place[2]) for place in told if place[1] < 8)
    values = {(place[1], place[2], str(said)) for place, said in told.items() if place[1] < 8}
    assert len(values) == len(same), "one curve for each trial of the first eight"
    assert len(trained(log)) < len(told)


def test_a_method_that_is_added_later_takes_over_what_is_there(database: Database, log: Path) -> None:
    with prepared(database, shared_spec(methods={"tpe": {"in_flight": 1}})) as running:
        run(running, FOUR_SLOTS)
    grown = shared_spec(methods={"tpe": {"in_flight": 1}, "random": {}})
    Experiments(database).grow(running.experiment.id, grown.to_json(), grown.studies())
    with prepared(database, grown) as running:
        run(running, FOUR_SLOTS)
        assert len(trained(log)) == 3 * (12 + 2)
        assert row_of(running, "random", 3).shared_with == "small/tpe/0"
        sound(running)


class TestCost:
    """In messages to the database, which are exact whatever the machine is doing."""

    def _trips(self, wire: Wire) -> int:
        queries, wire.queries = list(wire.queries), []
        return sum("set_config('TimeZone'" not in query for query in queries)

    @pytest.mark.parametrize(
        ("methods", "more"),
        [({"random": {}}, 0), ({"random": {}, "tpe": {"in_flight": 1}}, 1), ({"grid": {}, "random": {}}, 0)],
        ids=["one", "first-trials", "grid"],
    )
    def test_of_a_claim(self, database: Database, methods: dict[str, Any], more: int) -> None:
        """One look for a whole round, where other methods may have drawn the same."""
        with (
            wired(database.url) as wire,
            Database(wire.url) as on_wire,
            prepared(on_wire, shared_spec(methods=methods, budget={"trials": 6})) as running,
            running.broker() as broker,
        ):
            broker.claim(1)
            broker.claim(1)
            self._trips(wire)
            (claim,) = broker.claim(1)
            assert claim.lease.study_name == f"small/{next(iter(methods))}/0"
            assert self._trips(wire) == 5 + more

    def test_of_epochs_while_trials_wait(self, database: Database) -> None:
        """Nothing: they are looked at once in a while, however short the epochs are."""
        with (
            wired(database.url) as wire,
            Database(wire.url) as on_wire,
            hands(on_wire, pruner={"name": "none"}, fixed={"epochs": 50}) as (_, a, b),
        ):
            (led,) = a.claim()
            a.say(led, 0.5)
            (other,) = b.claim()
            b.take_over()
            self._trips(wire)
            for epoch in range(1, 21):
                assert b.broker.sharing.replay() == []
                b.broker.store([Reported(other, report_of(epoch), last=False)])
            assert self._trips(wire) == 20


class TestMayBeCommon:
    KINDS: ClassVar[dict[str, BaseDistribution]] = {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "share": FloatDistribution(0.0, 1.0, step=0.25),
        "width": IntDistribution(1, 64),
        "loss": CategoricalDistribution(["a", "b"]),
    }

    def values(self, number: int, **changed: Any) -> dict[str, Any]:
        study = optuna.create_study(sampler=NamedRandomSampler(3, 0))
        for _ in range(number + 1):
            trial = study.ask(self.KINDS)
        return trial.params | changed

    def test_the_values_that_every_method_begins_with(self) -> None:
        assert may_be_common(self.values(5), self.KINDS, 3, 0, 5)

    @pytest.mark.parametrize("changed", [{"rate": 0.5}, {"loss": "c"}, {"width": 65}])
    def test_others_of_a_dimension_that_cannot_be_counted(self, changed: dict[str, Any]) -> None:
        assert not may_be_common(self.values(5, **changed), self.KINDS, 3, 0, 5)

    def test_those_of_another_number(self) -> None:
        assert not may_be_common(self.values(5), self.KINDS, 3, 0, 4)

    def test_any_where_all_can_be_counted(self) -> None:
        assert may_be_common({"share": 0.25, "width": 7, "loss": "b"}, self.KINDS, 3, 0, 5)
