"""What every ledger promises of leases: who is late is refused, what is lost comes back or is retried."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from optuna.trial import TrialState

from storage.attempts import Attempts
from storage.curves import Curves
from storage.errors import ValueRefused
from storage.ledger import MAX_ATTEMPTS
from tests.contracts.ledger_fixtures import LedgerFixtures
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of, events, move_deadline


class LedgerLeasesContract(LedgerFixtures):
    """Part of `LedgerContract`."""

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
