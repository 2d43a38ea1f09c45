"""Random histories of several workers: whatever they do in any order, the checker finds nothing wrong."""

from __future__ import annotations

import os
import uuid

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from storage.batched_ledger import BatchedLedger
from storage.checker import check_history
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import MAX_ATTEMPTS, Lease
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord
from tests.contracts.ledger_writes import draw_of, end, epoch_of, move_deadline

WORKERS = st.integers(0, 2)
ENDINGS = st.sampled_from(["complete", "pruned", "failed", "released", "retry"])


class Held:
    """A lease as its worker sees it, and what the model knows of it."""

    def __init__(self, lease: Lease, worker: int) -> None:
        self.lease = lease
        self.worker = worker
        self.step = lease.last_step or 0
        self.lost = False


class Histories(RuleBasedStateMachine):
    """Three workers on one study, a foreign client, and a clock that jumps."""

    url: str
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(self.url)
        name = f"e{uuid.uuid4().hex}"
        self.study_name = f"{name}/tpe/0"
        self.experiment: ExperimentRecord = Experiments(self.database).create(
            name, {}, "hash", {}, [("tpe", 0, self.study_name)]
        )
        self.storage = open_optuna_storage(self.url)
        self.study = optuna.create_study(storage=self.storage, study_name=self.study_name)
        self.ledger = BatchedLedger(self.database)
        self.workers = [self.ledger.register(f"w{index}") for index in range(3)]
        self.held: list[Held] = []
        self.results: dict[int, float] = {}

    def teardown(self) -> None:
        close_optuna_storage(self.storage)
        self.database.close()

    @rule(points=st.integers(1, 3))
    def enqueue(self, points: int) -> None:
        for _ in range(points):
            self.study.enqueue_trial({"lr": 0.1}, user_attrs={"shoal:grid": uuid.uuid4().hex})

    @rule(target=leases, worker=WORKERS, waiting=st.integers(0, 3), new=st.integers(0, 2))
    def claim(self, worker: int, waiting: int, new: int):
        claimed = self.ledger.claim(self.study_name, self.workers[worker], waiting=waiting, new=new)
        assert len({lease.trial_id for lease in claimed}) == len(claimed) <= waiting + new
        held = [Held(lease, worker) for lease in claimed]
        for new_one in held:
            # Whoever held the trial before has lost it.
            assert all(old.lost for old in self.held if old.lease.trial_id == new_one.lease.trial_id)
        self.held += held
        return multiple(*held)

    @rule(held=st.lists(leases, min_size=1, max_size=4, unique=True), steps=st.integers(0, 3))
    def work(self, held: list[Held], steps: int) -> None:
        epochs = []
        for one in held:
            epochs += [epoch_of(one.lease, one.step + step, step / 10) for step in range(1, steps + 1)]
        written = self.ledger.write(
            beats=[one.lease for one in held],
            draws=[draw_of(one.lease) for one in held if one.step == 0],
            epochs=epochs,
        )
        self.judge(held, written.refused)
        for one in held:
            one.step += steps

    @rule(held=consumes(leases), state=ENDINGS, value=st.floats(-1e300, 1e300))
    def finish(self, held: Held, state: str, value: float) -> None:
        ending = end(held.lease, state, value=value) if state == "complete" else end(held.lease, state)
        written = self.ledger.write(endings=[ending])
        self.judge([held], written.refused)
        if not held.lost and state == "complete":
            assert held.lease.trial_id not in self.results
            self.results[held.lease.trial_id] = value
        held.lost = True

    @rule(held=leases)
    def run_out(self, held: Held) -> None:
        move_deadline(self.database, -3600, held.lease.token)
        held.lost = True

    @rule(dead=st.sets(WORKERS, max_size=1))
    def expire(self, dead: set[int]) -> None:
        expired = self.ledger.expire(self.experiment.id, dead_workers=[self.workers[one] for one in dead])
        for one in self.held:
            one.lost = one.lost or one.worker in dead
        assert all(trial.attempt >= MAX_ATTEMPTS for trial in expired if trial.given_up)
        assert self.ledger.expire(self.experiment.id) == []

    @rule(worker=WORKERS)
    def retire(self, worker: int) -> None:
        self.ledger.retire(self.workers[worker])
        self.workers[worker] = self.ledger.register(f"w{worker}")
        for one in self.held:
            one.lost = one.lost or one.worker == worker

    @rule()
    def retry(self) -> None:
        self.ledger.retry_failed(self.experiment.id)
        assert self.ledger.retry_failed(self.experiment.id) == []

    @rule(value=st.floats(-1, 1))
    def a_stranger_runs_a_trial(self, value: float) -> None:
        trial = self.study.ask()
        self.study.tell(trial, value)

    def judge(self, held: list[Held], refused) -> None:
        """A lease that was lost is refused, and no other."""
        assert set(refused) == {one.lease.token for one in held if one.lost}

    @invariant()
    def history_is_true(self) -> None:
        assert check_history(self.database, self.experiment.id) == []

    @invariant()
    def results_are_those_of_the_holders(self) -> None:
        ours = {trial._trial_id: trial.value for trial in self.study.get_trials(deepcopy=False)}
        assert {trial_id: ours[trial_id] for trial_id in self.results} == self.results


@pytest.mark.slow
def test_histories(database_url):
    machine = type("MachineOnThisDatabase", (Histories,), {"url": database_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("SHOAL_TEST_HISTORIES", "15")),
            stateful_step_count=25,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
