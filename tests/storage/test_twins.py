"""Who of several equal trials is trained: decided once, whoever asks at one moment, and anew when needed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

from storage.batched_ledger import BatchedLedger
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Draw, Ending, EpochWrite, Lease
from storage.twins import FOLLOWS_KEY, Asked, Found, Twins

METHODS = ("random", "tpe", "gp")
SEED = 2**62 + 1


@dataclass(frozen=True)
class Field:
    """An experiment of three methods, one replicate each, and a worker for each."""

    database: Database
    storage: optuna.storages.BaseStorage
    experiment_id: int
    workers: dict[str, int]
    report: Any

    @property
    def ledger(self) -> BatchedLedger:
        return BatchedLedger(self.database)

    def claim(self, method: str, *, seed: int = SEED, rate: float = 0.1, waiting: bool = False) -> Lease:
        """A trial that is drawn, or taken from the queue."""
        (lease,) = self.ledger.claim(
            f"e/{method}/0", self.workers[method], waiting=int(waiting), new=int(not waiting)
        )
        if not waiting:
            draw = Draw(
                lease=lease,
                values={"rate": rate},
                distributions={"rate": FloatDistribution(0.0, 1.0)},
                attributes={"shoal:seed": seed},
            )
            assert not self.ledger.write(draws=[draw]).refused
        return lease

    def look(self, *leases: Lease, seed: int = SEED, after: int = 0) -> list[Found | None]:
        found = Twins(self.database, self.experiment_id).look(
            Asked(lease.token, lease.number, seed, after) for lease in leases
        )
        return [found.get(lease.token) for lease in leases]

    def leaders(self, *leases: Lease) -> list[int | None]:
        return [found.leader for found in self.look(*leases) if found is not None]

    def epochs(self, lease: Lease, *epochs: int, ending: Ending | None = None) -> None:
        writes = [EpochWrite(lease=lease, report=self.report(epoch=epoch), value=0.5) for epoch in epochs]
        assert not self.ledger.write(epochs=writes, endings=[ending] if ending else []).refused

    def release(self, lease: Lease) -> None:
        self.ledger.write(endings=[Ending(lease=lease, state="released")])

    def marks(self) -> list[int]:
        """Trials that are noted as followers."""
        with self.database.begin() as connection:
            rows = connection.exec_driver_sql(
                "SELECT trial_id FROM trial_system_attributes WHERE key = %(key)s ORDER BY 1",
                {"key": FOLLOWS_KEY},
            )
            return [row.trial_id for row in rows]


@pytest.fixture
def field(database: Database, optuna_storage: optuna.storages.BaseStorage, report: Any) -> Field:
    studies = [(method, 0, f"e/{method}/0") for method in METHODS]
    record = Experiments(database).create("e", {"experiment": "e"}, "hash", {}, studies)
    for _, _, name in studies:
        optuna.create_study(storage=optuna_storage, study_name=name)
    ledger = BatchedLedger(database)
    workers = {method: ledger.register(method) for method in METHODS}
    return Field(database, optuna_storage, record.id, workers, report)


def test_alone_it_leads(field: Field) -> None:
    assert field.look(field.claim("random")) == [Found(leader=None)]
    assert field.marks() == []


def test_who_comes_later_follows(field: Field) -> None:
    first, second = field.claim("random"), field.claim("tpe")
    assert field.leaders(first) == [second.trial_id], "the other has not looked yet: it is to be trained"
    assert field.leaders(second) == [None], "for the first follows it"
    assert field.marks() == [first.trial_id]


@pytest.mark.parametrize("change", [{"seed": 7}, {"rate": 0.2}])
def test_other_seeds_and_values_are_no_twins(field: Field, change: dict[str, Any]) -> None:
    field.claim("random", **change)
    assert field.look(field.claim("tpe")) == [Found(leader=None)]


def test_of_those_that_are_asked_together_the_first_leads(field: Field) -> None:
    leases = [field.claim(method) for method in METHODS]
    assert field.leaders(*reversed(leases)) == [leases[0].trial_id, leases[0].trial_id, None]
    assert field.leaders(leases[1]) == [leases[0].trial_id]


def test_somebody_elses_leader_comes_before_ones_own(field: Field) -> None:
    other, one, two = (field.claim(method) for method in ("gp", "random", "tpe"))
    assert field.leaders(one, two) == [other.trial_id] * 2


def test_a_follower_of_a_lost_leader_leads_and_no_other_does(field: Field) -> None:
    leases = [field.claim(method) for method in METHODS]
    field.leaders(*leases)
    field.release(leases[0])
    assert field.leaders(leases[2]) == [None]
    assert field.leaders(leases[1]) == [leases[2].trial_id]
    again = field.claim("random", waiting=True)
    assert field.leaders(again) == [leases[2].trial_id]


def test_a_note_is_void_once_its_lease_is(field: Field) -> None:
    """Else the one that was a follower once would be passed over as if it still were."""
    first, second = field.claim("random"), field.claim("tpe")
    assert field.leaders(second) == [first.trial_id]
    field.release(second)
    field.release(first)
    again = field.claim("tpe", waiting=True)
    assert field.marks() == [again.trial_id]
    assert field.leaders(field.claim("random", waiting=True)) == [again.trial_id]


def test_a_lease_that_ran_out_neither_leads_nor_asks(field: Field) -> None:
    first, second = field.claim("random"), field.claim("tpe")
    with field.database.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE shoal.attempts SET deadline = clock_timestamp() - interval '1 s' WHERE token = %s",
            (first.token,),
        )
    assert field.look(first, second) == [None, Found(leader=None)]


def test_epochs_come_from_the_twin_that_got_farthest(field: Field) -> None:
    first, second = field.claim("random"), field.claim("tpe")
    field.epochs(first, 1, 2, 3)
    field.epochs(second, 1)
    field.release(first)
    third = field.claim("gp")
    (found,) = field.look(third, after=1)
    assert found is not None
    assert (found.leader, found.study_name, found.complete) == (second.trial_id, "e/random/0", False)
    assert [point.epoch for point in found.points] == [2, 3]
    whole = field.report(epoch=2)
    assert all(getattr(found.points[0], name) == value for name, value in vars(whole).items())


def test_one_that_is_complete_says_so(field: Field) -> None:
    first = field.claim("random")
    field.epochs(first, 1, 2, ending=Ending(lease=first, state="complete", value=0.5))
    (found,) = field.look(field.claim("tpe"))
    assert found is not None
    assert (found.leader, found.complete, len(found.points)) == (None, True, 2)


def test_the_study_of_a_twin_was_deleted(field: Field) -> None:
    first = field.claim("random")
    field.epochs(first, 1)
    optuna.delete_study(storage=field.storage, study_name="e/random/0")
    assert field.look(field.claim("tpe")) == [Found(leader=None)]
    assert field.look(first) == [None]


def test_of_those_that_ask_at_one_moment_one_leads(field: Field) -> None:
    """Forty times three threads; each draws its trial and looks, as workers do."""
    barrier = threading.Barrier(len(METHODS))

    def play(method: str, seed: int) -> int | None:
        barrier.wait(240)
        lease = field.claim(method, seed=seed)
        (found,) = field.look(lease, seed=seed)
        assert found is not None
        return found.leader

    with ThreadPoolExecutor(len(METHODS)) as pool:
        for seed in range(40):
            leaders = list(pool.map(lambda method, seed=seed: play(method, seed), METHODS))
            assert leaders.count(None) == 1, leaders


def test_a_schema_of_optunas_that_we_do_not_know_has_no_twins(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = field.claim("random"), field.claim("tpe")
    monkeypatch.setattr(Database, "optuna_revision", lambda _self: "v9.9.9")
    assert field.leaders(first, second) == [None, None]
