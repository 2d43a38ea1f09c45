"""What every ledger promises, checked on a real database. Inherited by each ledger's tests."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import text

from storage.attempts import Attempts
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.errors import StudyNotFound, ValueRefused
from storage.ledger import MAX_ATTEMPTS, Draw, Ending, EpochWrite, Lease, Ledger

STUDY = "e/tpe/0"

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "layers": IntDistribution(1, 5),
    "norm": CategoricalDistribution(["batch", None, 2, True]),
}


@dataclass(frozen=True)
class Epoch:
    """An epoch's report as an engine gives it."""

    epoch: int = 1
    train_loss: float | None = 0.5
    validation_loss: float | None = 0.75
    metrics: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.9})
    gradient_norm: float | None = 1.5
    learning_rate: float = 0.1
    seconds: float = 0.25
    images_per_second: float = 1000.0
    diverged: bool = False


def epoch_of(lease: Lease, step: int, value: float = 0.5, **changed: Any) -> EpochWrite:
    """An epoch to write."""
    return EpochWrite(lease=lease, report=Epoch(epoch=step, **changed), value=value)


def draw_of(lease: Lease, lr: float = 0.1, **more: Any) -> Draw:
    """Values to write."""
    values = {"lr": lr, "layers": 3, "norm": None}
    return Draw(lease=lease, values=values, distributions=DISTRIBUTIONS, **more)


def end(lease: Lease, state: str = "complete", value: float | None = None, **more: Any) -> Ending:
    """An ending to write, with what its state needs."""
    if state == "complete" and value is None:
        value = 0.5
    if state in ("failed", "retry"):
        more.setdefault("reason", "it broke")
    return Ending(lease=lease, state=state, value=value, **more)


def move_deadline(database: Database, seconds: float, token: int | None = None) -> None:
    """Let leases run out (or on) without waiting for it."""
    statement = (
        "UPDATE shoal.attempts SET deadline = deadline + make_interval(secs => :seconds) "
        "WHERE state = 'running' AND (CAST(:token AS bigint) IS NULL OR token = :token)"
    )
    with database.begin() as connection:
        connection.execute(text(statement), {"seconds": seconds, "token": token})


def events(database: Database, kind: str | None = None) -> list[tuple[str, int | None]]:
    """Kinds and tokens of the events of leases, in order."""
    statement = (
        "SELECT kind, token FROM shoal.events WHERE CAST(:kind AS text) IS NULL OR kind = :kind ORDER BY id"
    )
    with database.begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement), {"kind": kind})]


class LedgerContract:
    """Inherit, and give a fixture `ledger`."""

    one_transaction: ClassVar[bool] = True
    """Whether a write is all or nothing."""
    cuts: ClassVar[bool] = True
    """Whether points beyond the last epoch of the attempt that ended a trial are dropped."""

    @pytest.fixture
    def study(self, optuna_storage, experiment) -> optuna.Study:
        for name in ("e/random/0", STUDY):
            optuna.create_study(storage=optuna_storage, study_name=name, direction="maximize")
        return optuna.load_study(study_name=STUDY, storage=optuna_storage)

    @pytest.fixture
    def ledger(self, database, optuna_storage, study) -> Ledger:
        raise NotImplementedError

    @pytest.fixture
    def worker(self, ledger) -> int:
        return ledger.register("w")

    @pytest.fixture(autouse=True)
    def history(self, database, experiment):
        """After every test the checker finds nothing wrong."""
        yield
        assert check_history(database, experiment.id) == []

    # ---- claiming ----

    def test_new_trials_are_running_from_the_claim_on(self, ledger, worker, study, database):
        leases = ledger.claim(STUDY, worker, waiting=0, new=3)
        assert [lease.number for lease in leases] == [0, 1, 2]
        assert [lease.attempt for lease in leases] == [1, 1, 1]
        tokens = [lease.token for lease in leases]
        assert tokens == sorted(set(tokens))
        trials = study.get_trials(deepcopy=False)
        assert [trial._trial_id for trial in trials] == [lease.trial_id for lease in leases]
        assert all(trial.state == TrialState.RUNNING and trial.datetime_start for trial in trials)
        assert leases[0].params == leases[0].fixed == leases[0].attributes == {}
        assert leases[0].last_step is None
        assert [record.state for record in Attempts(database).of_trial(leases[0].trial_id)] == ["running"]
        assert [kind for kind, _ in events(database)] == ["registered", *["claimed"] * 3]

    def test_none_is_made_of_a_study_that_was_counted_before_others_came(self, ledger, worker, study):
        study.enqueue_trial({"lr": 0.1})
        assert ledger.claim(STUDY, worker, waiting=0, new=2, of=0) == []
        # What waits is not made, and so is not concerned.
        assert [lease.number for lease in ledger.claim(STUDY, worker, waiting=1, new=2, of=0)] == [0]
        assert [lease.number for lease in ledger.claim(STUDY, worker, waiting=0, new=2, of=1)] == [1, 2]
        assert len(study.trials) == 3

    def test_the_queue_is_taken_by_number_with_its_values(self, ledger, worker, study):
        for lr in (0.1, 0.2, 0.3):
            study.enqueue_trial({"lr": lr, "norm": None}, user_attrs={"shoal:grid": f"lr={lr}"})
        first = ledger.claim(STUDY, worker, waiting=2, new=0)
        assert [lease.fixed for lease in first] == [{"lr": 0.1, "norm": None}, {"lr": 0.2, "norm": None}]
        assert first[0].attributes == {"shoal:grid": "lr=0.1"}
        rest = ledger.claim(STUDY, worker, waiting=2, new=1)
        assert [(lease.number, dict(lease.fixed)) for lease in rest] == [
            (2, {"lr": 0.3, "norm": None}),
            (3, {}),
        ]

    def test_what_has_begun_goes_on_first(self, ledger, worker, study):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(draws=[draw_of(lease)], epochs=[epoch_of(lease, 1), epoch_of(lease, 2)])
        ledger.write(endings=[end(lease, "released")])
        study.enqueue_trial({"lr": 0.5})
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        assert (again.trial_id, again.attempt, again.last_step) == (lease.trial_id, 2, 2)
        assert again.params == {"lr": 0.1, "layers": 3, "norm": None}
        assert again.token > lease.token

    def test_a_begun_trial_comes_before_a_lower_number(self, ledger, worker, study):
        study.enqueue_trial({"lr": 0.5})
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(draws=[draw_of(lease)], endings=[end(lease, "released")])
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        assert again.number == lease.number == 1

    def test_of_the_queue_those_are_taken_that_are_named(self, ledger, worker, study):
        leases = ledger.claim(STUDY, worker, waiting=0, new=4)
        ledger.write(
            draws=[draw_of(lease) for lease in leases], endings=[end(lease, "released") for lease in leases]
        )
        assert ledger.claim(STUDY, worker, waiting=4, new=0, among=[]) == []
        assert [lease.number for lease in ledger.claim(STUDY, worker, waiting=1, new=0, among=[1, 3])] == [1]
        # One that is taken, one that isn't there, and one more than may be taken.
        both = ledger.claim(STUDY, worker, waiting=1, new=1, among=[1, 7, 3])
        assert [lease.number for lease in both] == [3, 4]
        assert [lease.number for lease in ledger.claim(STUDY, worker, waiting=9, new=0)] == [0, 2]

    def test_an_epoch_and_the_way_back_to_the_queue_are_one_write(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(
            draws=[draw_of(lease)],
            epochs=[epoch_of(lease, 1, 0.75)],
            endings=[end(lease, "released", attributes={"shoal:shared_epochs": 1})],
        )
        (trial,) = study.get_trials()
        assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {1: 0.75})
        assert trial.user_attrs["shoal:shared_epochs"] == 1
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0, among=[0])
        assert (again.last_step, again.attributes["shoal:shared_epochs"]) == (1, 1)

    def test_a_trial_may_end_as_pruned_without_another_epoch(self, ledger, worker, study, database):
        """One that rested, and goes on no more: it ends with what it had."""
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        reports = [epoch_of(lease, 1, 0.25), epoch_of(lease, 2, 0.75)]
        ledger.write(draws=[draw_of(lease)], epochs=reports, endings=[end(lease, "released")])
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0, among=[0])
        ledger.write(endings=[end(again, "pruned")])
        (trial,) = study.get_trials()
        assert (trial.state, trial.value, trial.last_step) == (TrialState.PRUNED, 0.75, 2)
        assert [point.epoch for point in Curves(database).of_trial(lease.trial_id)] == [1, 2]

    def test_one_that_was_never_drawn_has_not_begun(self, ledger, worker, study):
        """Its worker died before; budgets count it as one that waits, so what has begun goes before it."""
        never, begun = ledger.claim(STUDY, worker, waiting=0, new=2)
        ledger.write(draws=[draw_of(begun)], endings=[end(begun, "released"), end(never, "released")])
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        assert again.number == begun.number == never.number + 1

    def test_what_goes_back_to_the_queue_is_nobodys(self, ledger, worker, study, experiment, database):
        """Without its seed, by which running trials of ours are told from those of other clients."""
        leases = ledger.claim(STUDY, worker, waiting=0, new=5)
        ledger.write(draws=[draw_of(lease, attributes={"shoal:seed": 17}) for lease in leases])
        released, retried, expired, over, retired = leases
        ledger.write(endings=[end(released, "released"), end(retried, "retry"), end(over)])
        with database.begin() as connection:
            late = "UPDATE shoal.attempts SET deadline = now() - interval '1 h' WHERE token = :lost"
            connection.execute(text(late), {"lost": expired.token})
        assert [one.number for one in ledger.expire(experiment.id)] == [expired.number]
        seeds = [trial.user_attrs.get("shoal:seed") for trial in study.get_trials()]
        assert seeds == [None, None, None, 17, 17], "the fourth is complete, the fifth still runs"
        ledger.retire(worker)
        assert study.get_trials()[retired.number].user_attrs.get("shoal:seed") is None
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        ledger.write(draws=[draw_of(again, attributes={"shoal:seed": 17})])
        assert study.get_trials()[again.number].user_attrs["shoal:seed"] == 17

    def test_nothing_waits_and_nothing_is_asked_for(self, ledger, worker):
        assert ledger.claim(STUDY, worker, waiting=5, new=0) == []

    def test_an_unknown_study_is_refused(self, ledger, worker, study, optuna_storage):
        with pytest.raises(StudyNotFound):
            ledger.claim("elsewhere/tpe/0", worker, waiting=0, new=1)
        optuna.create_study(storage=optuna_storage, study_name="elsewhere/tpe/0")
        with pytest.raises(StudyNotFound):
            ledger.claim("elsewhere/tpe/0", worker, waiting=1, new=1)
        assert optuna.load_study(study_name="elsewhere/tpe/0", storage=optuna_storage).trials == []
        optuna.delete_study(storage=optuna_storage, study_name="e/random/0")
        with pytest.raises(StudyNotFound):
            ledger.claim("e/random/0", worker, waiting=0, new=1)

    def test_numbers_are_dense_beside_stock_clients(self, ledger, study, database_url):
        """Four of our workers and two stock clients make trials of one study at the same time."""
        workers = [ledger.register(f"w{index}") for index in range(4)]
        wrong: list[BaseException] = []

        def ours(worker: int) -> None:
            try:
                with Database(database_url) as own:
                    mine = type(ledger)(own, ledger._storage)
                    for _ in range(5):
                        leases = mine.claim(STUDY, worker, waiting=0, new=3)
                        mine.write(endings=[end(lease) for lease in leases])
            except BaseException as error:  # noqa: BLE001 (told by the test's own thread)
                wrong.append(error)

        def stock() -> None:
            try:
                other = optuna.load_study(study_name=STUDY, storage=optuna.storages.RDBStorage(database_url))
                for _ in range(8):
                    other.tell(other.ask(), 0.1)
            except BaseException as error:  # noqa: BLE001
                wrong.append(error)

        threads = [threading.Thread(target=ours, args=[worker]) for worker in workers]
        threads += [threading.Thread(target=stock) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert [trial.number for trial in study.get_trials()] == list(range(4 * 15 + 16))

    def test_a_queue_is_shared_without_doubling(self, ledger, study, database_url):
        for index in range(40):
            study.enqueue_trial({"lr": 0.1 + index / 100})
        taken: list[int] = []

        def take(name: str) -> None:
            with Database(database_url) as own:
                mine = type(ledger)(own, ledger._storage)
                worker = mine.register(name)
                while leases := mine.claim(STUDY, worker, waiting=3, new=0):
                    taken.extend(lease.number for lease in leases)
                    mine.write(endings=[end(lease) for lease in leases])

        threads = [threading.Thread(target=take, args=[f"w{index}"]) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == list(range(40))

    # ---- writing ----

    def test_a_trials_whole_life(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(draws=[draw_of(lease, attributes={"shoal:seed": 17}, sampler_seconds=0.5)])
        for step in (1, 2, 3):
            assert ledger.write(epochs=[epoch_of(lease, step, step / 10)]).refused == {}
        ledger.write(endings=[end(lease, value=0.3, attributes={"epochs": 3, "diverged": False})])
        (trial,) = study.get_trials()
        assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.3])
        assert trial.params == {"lr": 0.1, "layers": 3, "norm": None}
        assert trial.distributions == DISTRIBUTIONS
        assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
        assert trial.user_attrs == {"shoal:seed": 17, "epochs": 3, "diverged": False}
        assert trial.datetime_complete >= trial.datetime_start
        curve = Curves(database).of_trial(lease.trial_id)
        assert [(point.epoch, point.attempt, point.train_loss) for point in curve] == [
            (1, 1, 0.5),
            (2, 1, 0.5),
            (3, 1, 0.5),
        ]
        (attempt,) = Attempts(database).of_trial(lease.trial_id)
        assert (attempt.state, attempt.worker) == ("complete", "w")
        assert [kind for kind, _ in events(database)] == ["registered", "claimed", "drawn", "completed"]

    def test_it_is_stored_as_optuna_would(self, ledger, worker, study, database):
        """The same trial through Optuna's own API leaves the same rows."""
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        attributes = {"shoal:seed": 17, "note": "ü\n\"'%s", "flag": True, "number": 0.1}
        ledger.write(draws=[draw_of(lease, attributes=attributes)])
        ledger.write(epochs=[epoch_of(lease, 1, 1 / 3), epoch_of(lease, 2, 1e-310)])
        ledger.write(endings=[end(lease, "pruned")])
        other = study.ask(DISTRIBUTIONS)
        raw = study._storage
        for key, value in attributes.items():
            other.set_user_attr(key, value)
        other.report(1 / 3, 1)
        other.report(1e-310, 2)
        study.tell(other, state=TrialState.PRUNED)
        tables = {
            "trials": "state, datetime_start IS NULL, datetime_complete IS NULL",
            "trial_values": "objective, value, value_type",
            "trial_user_attributes": "key, value_json",
            "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
            "trial_params": "param_name, distribution_json",
        }
        with database.begin() as connection:
            for table, columns in tables.items():
                rows = [
                    sorted(
                        map(
                            str,
                            connection.execute(
                                text(f"SELECT {columns} FROM {table} WHERE trial_id = :id"), {"id": trial_id}
                            ),
                        )
                    )
                    for trial_id in (lease.trial_id, other._trial_id)
                ]
                assert rows[0] == rows[1], table
                assert rows[0] or table == "none", table
            late = "abs(extract(epoch FROM datetime_start - timezone('UTC', now())))"
            zone = f"SELECT bool_and({late} < 60) FROM trials"
            assert connection.scalar(text(zone))
        assert raw.get_trial(lease.trial_id).params == {"lr": 0.1, "layers": 3, "norm": None}

    @pytest.mark.parametrize("steps", [(1, 4), ()])
    def test_a_pruned_trial_keeps_its_last_report(self, ledger, worker, study, steps):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(epochs=[epoch_of(lease, step, step / 10) for step in steps])
        ledger.write(endings=[end(lease, "pruned")])
        (trial,) = study.get_trials()
        assert trial.state == TrialState.PRUNED
        assert trial.value == (0.4 if steps else None)

    def test_a_failed_trial_has_its_reason(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(endings=[end(lease, "failed", reason="shapes differ", traceback="Traceback\x00 \ud800")])
        (trial,) = study.get_trials()
        assert (trial.state, trial.value) == (TrialState.FAIL, None)
        assert trial.user_attrs == {"reason": "shapes differ"}
        (attempt,) = Attempts(database).of_trial(lease.trial_id)
        assert (attempt.state, attempt.reason) == ("failed", "shapes differ")
        assert attempt.traceback == "Traceback\ufffd ?"

    def test_a_released_trial_waits_and_counts_for_nothing(self, ledger, worker, study, database):
        for attempt in range(1, MAX_ATTEMPTS + 3):
            (lease,) = ledger.claim(STUDY, worker, waiting=1, new=1 if attempt == 1 else 0)
            assert lease.attempt == attempt
            ledger.write(endings=[end(lease, "released")])
            assert study.get_trials()[0].state == TrialState.WAITING
        assert Attempts(database).count(lease.trial_id) == 0

    def test_a_trial_that_fails_too_often_is_given_up(self, ledger, worker, study, database):
        for attempt in range(1, MAX_ATTEMPTS + 1):
            (lease,) = ledger.claim(STUDY, worker, waiting=1, new=1 if attempt == 1 else 0)
            written = ledger.write(endings=[end(lease, "retry", reason=f"failure {attempt}")])
            assert written.refused == {}
            last = attempt == MAX_ATTEMPTS
            assert written.given_up == ({lease.token} if last else set())
            assert study.get_trials()[0].state == (TrialState.FAIL if last else TrialState.WAITING)
        assert study.get_trials()[0].user_attrs["reason"] == f"failure {MAX_ATTEMPTS}"
        assert ledger.claim(STUDY, worker, waiting=1, new=0) == []

    def test_everything_in_one_write(self, ledger, worker, study):
        one, two = ledger.claim(STUDY, worker, waiting=0, new=2)
        written = ledger.write(
            beats=[one, two],
            draws=[draw_of(one), draw_of(two)],
            epochs=[epoch_of(one, 1, 0.1), epoch_of(two, 1, 0.2), epoch_of(one, 2, 0.3)],
            endings=[end(one), end(two, "pruned")],
        )
        assert written.refused == {}
        first, second = study.get_trials()
        assert (first.state, first.value, first.last_step) == (TrialState.COMPLETE, 0.5, 2)
        assert (second.state, second.value) == (TrialState.PRUNED, 0.2)

    def test_nothing_to_write(self, ledger, worker):
        assert ledger.write().refused == {}

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_refused_before_anything_is_stored(self, ledger, worker, study, value):
        one, two = ledger.claim(STUDY, worker, waiting=0, new=2)
        for said in (
            {"epochs": [epoch_of(one, 1, value)]},
            {"epochs": [epoch_of(one, 1, train_loss=value)]},
            {"epochs": [epoch_of(one, 1, metrics={"accuracy": value})]},
            {"endings": [end(one, value=value)]},
            {"endings": [end(one, attributes={"score": value})]},
            {"draws": [draw_of(one, lr=value)]},
        ):
            with pytest.raises(ValueRefused):
                ledger.write(**{"endings": [end(two)]} | said)
        states = {trial.state for trial in study.get_trials()}
        assert states == {TrialState.RUNNING}
        assert all(not trial.params and not trial.intermediate_values for trial in study.get_trials())

    @pytest.mark.parametrize(
        ("state", "more"),
        [("complete", {"value": None}), ("failed", {"reason": None}), ("retry", {"reason": ""})],
    )
    def test_an_ending_needs_what_its_state_means(self, ledger, worker, study, state, more):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        with pytest.raises(ValueRefused):
            ledger.write(endings=[Ending(lease=lease, state=state, **more)])

    # ---- the fence ----

    def test_steps_of_an_attempt_increase(self, ledger, worker, study):
        one, two = ledger.claim(STUDY, worker, waiting=0, new=2)
        with pytest.raises(ValueRefused):
            ledger.write(epochs=[epoch_of(one, 2), epoch_of(one, 1)])
        ledger.write(epochs=[epoch_of(one, 2)])
        written = ledger.write(epochs=[epoch_of(one, 2, 0.9), epoch_of(two, 1)])
        assert set(written.refused) == {one.token}
        assert study.get_trials()[0].intermediate_values == {2: 0.5}
        assert study.get_trials()[1].intermediate_values == {1: 0.5}

    def test_after_the_deadline_everything_is_refused(self, ledger, worker, study, database):
        late, alive = ledger.claim(STUDY, worker, waiting=0, new=2)
        move_deadline(database, -3600, late.token)
        written = ledger.write(
            beats=[alive], draws=[draw_of(late)], epochs=[epoch_of(late, 1)], endings=[end(late)]
        )
        assert set(written.refused) == {late.token}
        assert "ran out" in written.refused[late.token]
        trial = study.get_trials()[0]
        assert (trial.state, trial.params, trial.intermediate_values) == (TrialState.RUNNING, {}, {})
        assert ("refused", late.token) in events(database)
        assert ledger.write(endings=[end(alive)]).refused == {}

    def test_a_beat_prolongs(self, ledger, worker, study, database, monkeypatch):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        move_deadline(database, -25)
        before = database.scalar("SELECT deadline FROM shoal.attempts")
        monkeypatch.setenv("SHOAL_LEASE_SECONDS", "60")
        ledger.write(beats=[lease])
        after = database.scalar("SELECT deadline FROM shoal.attempts")
        assert (after - before).total_seconds() > 50

    def test_a_lease_that_was_taken_back_writes_nothing_more(
        self, ledger, worker, study, database, experiment
    ):
        (old,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(epochs=[epoch_of(old, 1, 0.1)])
        move_deadline(database, -3600)
        ledger.expire(experiment.id)
        (new,) = ledger.claim(STUDY, ledger.register("other"), waiting=1, new=0)
        assert new.token > old.token
        written = ledger.write(epochs=[epoch_of(old, 2, 0.9), epoch_of(new, 2, 0.2)], endings=[end(old)])
        assert set(written.refused) == {old.token}
        assert "taken back" in written.refused[old.token]
        ledger.write(endings=[end(new)])
        (trial,) = study.get_trials()
        assert trial.intermediate_values == {1: 0.1, 2: 0.2}
        assert [point.attempt for point in Curves(database).of_trial(old.trial_id)] == [1, 2]
        assert set(ledger.write(endings=[end(new)]).refused) == {new.token}

    def test_a_trial_that_somebody_else_ended(self, ledger, worker, study):
        theirs, mine = ledger.claim(STUDY, worker, waiting=0, new=2)
        study.tell(theirs.number, 0.9)
        written = ledger.write(epochs=[epoch_of(theirs, 1), epoch_of(mine, 1)], endings=[end(theirs)])
        assert set(written.refused) == {theirs.token}
        assert study.get_trials()[0].value == 0.9
        assert study.get_trials()[1].intermediate_values == {1: 0.5}

    def test_a_study_that_somebody_deleted(self, ledger, worker, study, optuna_storage, experiment, database):
        (gone,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        (lease,) = ledger.claim("e/random/0", worker, waiting=0, new=1)
        optuna.delete_study(study_name=STUDY, storage=optuna_storage)
        written = ledger.write(beats=[gone, lease], endings=[end(gone), end(lease)])
        assert set(written.refused) == {gone.token}
        move_deadline(database, -3600)
        assert ledger.expire(experiment.id) == []
        (attempt,) = Attempts(database).of_trial(gone.trial_id)
        assert attempt.state == "lost"

    def test_an_unknown_token(self, ledger, worker, study):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        import dataclasses

        forged = dataclasses.replace(lease, token=lease.token + 1000)
        assert set(ledger.write(beats=[forged, lease]).refused) == {forged.token}

    # ---- taking back ----

    def test_expired_trials_wait_again(self, ledger, worker, study, database, experiment):
        late, _alive = ledger.claim(STUDY, worker, waiting=0, new=2)
        move_deadline(database, -3600, late.token)
        (expired,) = ledger.expire(experiment.id)
        assert (expired.number, expired.attempt, expired.worker) == (late.number, 1, "w")
        assert (expired.study_name, expired.given_up) == (STUDY, False)
        assert ledger.expire(experiment.id) == []
        assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING, TrialState.RUNNING]
        assert ledger.expire(experiment.id + 1) == []

    def test_lost_too_often(self, ledger, worker, study, database, experiment):
        for attempt in range(1, MAX_ATTEMPTS + 1):
            ledger.claim(STUDY, worker, waiting=1, new=1 if attempt == 1 else 0)
            move_deadline(database, -3600)
            (expired,) = ledger.expire(experiment.id)
            assert expired.given_up == (attempt == MAX_ATTEMPTS)
        (trial,) = study.get_trials()
        assert trial.state == TrialState.FAIL
        assert "3 workers ended" in trial.user_attrs["reason"]

    def test_workers_that_are_known_dead_are_not_waited_for(self, ledger, study, experiment):
        dead, living = ledger.register("dead"), ledger.register("living")
        ledger.claim(STUDY, dead, waiting=0, new=2)
        ledger.claim(STUDY, living, waiting=0, new=1)
        expired = ledger.expire(experiment.id, dead_workers=[dead])
        assert [trial.worker for trial in expired] == ["dead", "dead"]

    def test_foreign_trials_are_left_alone(self, ledger, study, experiment):
        study.ask()
        assert ledger.expire(experiment.id) == []
        assert study.get_trials()[0].state == TrialState.RUNNING

    def test_a_trial_that_a_stranger_ended_stays_so(self, ledger, worker, study, experiment, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        study.tell(lease.number, 0.7)
        move_deadline(database, -3600)
        assert ledger.expire(experiment.id) == []
        assert study.get_trials()[0].value == 0.7
        assert Attempts(database).of_trial(lease.trial_id)[0].state == "lost"

    def test_retiring_gives_back_at_once(self, ledger, worker, study, database):
        done, held = ledger.claim(STUDY, worker, waiting=0, new=2)
        ledger.write(endings=[end(done)])
        ledger.retire(worker)
        ledger.retire(worker)
        assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.WAITING]
        assert [record.state for record in Attempts(database).of_trial(held.trial_id)] == ["released"]
        assert database.scalar("SELECT ended_at IS NOT NULL FROM shoal.workers")
        assert [kind for kind, _ in events(database)][-2:] == ["released", "retired"]
        assert len(events(database, "retired")) == 1

    # ---- retrying ----

    def test_a_failed_trial_is_run_once_more(self, ledger, worker, study, experiment):
        study.enqueue_trial({"lr": 0.1}, user_attrs={"shoal:grid": "lr=0.1"})
        (lease,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        ledger.write(draws=[draw_of(lease, attributes={"shoal:seed": 17})], epochs=[epoch_of(lease, 1)])
        ledger.write(endings=[end(lease, "failed")])
        (retried,) = ledger.retry_failed(experiment.id)
        assert (retried.study_name, retried.number, retried.new_number) == (STUDY, 0, 1)
        assert ledger.retry_failed(experiment.id) == []
        old, new = study.get_trials()
        assert old.state == TrialState.FAIL
        assert new.state == TrialState.WAITING
        assert new.intermediate_values == {}
        assert new.user_attrs == {"shoal:grid": "lr=0.1", "shoal:retry_of": 0}
        assert new.params == old.params
        callback = optuna.storages.RetryHeartbeatStaleTrialCallback
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            assert (callback.retried_trial_number(new), callback.retry_history(new)) == (0, [0])
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        assert (again.params, again.fixed) == ({"lr": 0.1, "layers": 3, "norm": None}, {"lr": 0.1})
        assert (again.attempt, again.last_step) == (1, None)
        ledger.write(endings=[end(again, "failed")])
        (second,) = ledger.retry_failed(experiment.id)
        assert (second.number, second.new_number) == (1, 2)
        newest = study.get_trials()[2]
        assert newest.user_attrs["shoal:retry_of"] == 1
        assert newest.system_attrs["failed_trial"] == 0
        assert newest.system_attrs["retry_history"] == [0, 1]
        (last,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        ledger.write(endings=[end(last)])
        assert ledger.retry_failed(experiment.id) == []

    def test_all_studies_are_retried(self, ledger, worker, study, experiment):
        for name in ("e/random/0", STUDY):
            leases = ledger.claim(name, worker, waiting=0, new=3)
            ledger.write(endings=[end(leases[0], "failed"), end(leases[1]), end(leases[2], "failed")])
        retried = ledger.retry_failed(experiment.id)
        assert [(one.study_name, one.number, one.new_number) for one in retried] == [
            ("e/random/0", 0, 3),
            ("e/random/0", 2, 4),
            (STUDY, 0, 3),
            (STUDY, 2, 4),
        ]

    # ---- going on ----

    def test_points_beyond_the_end_are_dropped(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        ledger.write(epochs=[epoch_of(lease, step, step / 10) for step in (1, 2, 3, 4)])
        ledger.write(endings=[end(lease, "released")])
        (again,) = ledger.claim(STUDY, worker, waiting=1, new=0)
        assert again.last_step == 4
        ledger.write(epochs=[epoch_of(again, 2, 0.2)])
        ledger.write(endings=[end(again, "pruned")])
        (trial,) = study.get_trials()
        if self.cuts:
            assert trial.intermediate_values == {1: 0.1, 2: 0.2}
            assert trial.value == 0.2
            assert [p.epoch for p in Curves(database).of_trial(lease.trial_id)] == [1, 2]
        else:
            assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
