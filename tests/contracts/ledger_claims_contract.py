"""What every ledger promises of claims: who gets which trial, and who goes first."""

from __future__ import annotations

import threading

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from storage.attempts import Attempts
from storage.curves import Curves
from storage.database import Database
from storage.errors import StudyNotFound
from tests.contracts.ledger_fixtures import LedgerFixtures
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of, events


class LedgerClaimsContract(LedgerFixtures):
    """Part of `LedgerContract`."""

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
            except BaseException as error:  # noqa: BLE001 (told by the test's own thread)
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
