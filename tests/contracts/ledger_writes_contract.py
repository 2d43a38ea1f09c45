"""What every ledger promises of writes: draws, epochs and endings arrive whole, or are refused."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from storage.attempts import Attempts
from storage.curves import Curves
from storage.errors import ValueRefused
from storage.ledger import MAX_ATTEMPTS, Ending
from tests.contracts.ledger_fixtures import LedgerFixtures
from tests.contracts.ledger_writes import DISTRIBUTIONS, STUDY, draw_of, end, epoch_of, events


class LedgerWritesContract(LedgerFixtures):
    """Part of `LedgerContract`."""

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
