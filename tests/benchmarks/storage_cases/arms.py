"""Ways to run a pool of trials on a study: Optuna's API over a storage, call by call or in batches, and ours.

An arm has one pool at a time. What it does for all of its pool it does as a careful user of that way
would: the stock storages know only calls, so they are called trial by trial.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from objectives.base import EpochReport
from search.experiment.settings import MedianSettings
from search.experiment.spec import ExperimentSpec
from search.pruning.table_pruner import TablePruner
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported
from storage.batched_ledger import BatchedLedger
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Ending
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.benchmarks.storage_cases.measuring import each
from tests.contracts.big_experiment import DISTRIBUTIONS, SPEC

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 1
SIX: Mapping[str, BaseDistribution] = {
    **{name: kind for name, (kind, _) in DISTRIBUTIONS.items()},
    "model.dropout": FloatDistribution(0.0, 0.9),
}
"""The parameters of the stored studies, and a sixth."""

EPOCHS = 20
"""Of the stored trials."""

LAST = 10**9
"""A limit in seconds that nothing reaches."""


def study_of(size: int) -> str:
    """The name of the stored study with so many trials."""
    return f"n{size}/random/0"


class Arm(ABC):
    """A way to run trials. `limit` of a method: after so many seconds call no further trial.

    Methods return the seconds of each call, or None if they did everything at once.
    """

    def __init__(self, url: str, size: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url = url
        self.size = size
        self.chance = random.Random(SEED)
        self.values = 0

    def value(self) -> float:
        """A value that is better than all before: a trial that is pruned would leave the pool."""
        self.values += 1
        return 0.99 + 1e-9 * self.values

    @abstractmethod
    def open(self) -> None:
        """Open the study and read all of it."""

    @abstractmethod
    def ask(self, count: int, limit: float = LAST) -> Sequence[float] | None:
        """Ask for trials with all their parameters: the pool from now on."""

    @abstractmethod
    def adopt(self, count: int) -> None:
        """Get a pool in any way."""

    @abstractmethod
    def report(self, step: int, limit: float = LAST) -> Sequence[float] | None:
        """Report a value of every trial."""

    @abstractmethod
    def decide(self, step: int, limit: float = LAST) -> Sequence[float] | None:
        """Ask for every trial whether it is to be pruned."""

    @abstractmethod
    def tell(self, limit: float = LAST) -> Sequence[float] | None:
        """Complete every trial."""

    @abstractmethod
    def drop(self) -> None:
        """Get rid of the pool in any way."""

    @abstractmethod
    def close(self) -> None:
        """Close connections."""


class Stock(Arm):
    """Optuna's API call by call, over Optuna's own storage with its cache."""

    study: optuna.Study
    pool: list[optuna.Trial]

    def __init__(self, url: str, size: int) -> None:
        super().__init__(url, size)
        self.pool = []

    def storage(self) -> BaseStorage:
        """The storage that this arm is about."""
        return optuna.storages.get_storage(self.url)

    def pruner(self) -> BasePruner:
        """The pruner that this arm asks."""
        return MedianPruner()

    def open(self) -> None:
        self.study = optuna.load_study(
            study_name=study_of(self.size),
            storage=self.storage(),
            sampler=RandomSampler(seed=SEED),
            pruner=self.pruner(),
        )
        self.study.get_trials(deepcopy=False)

    def _ask(self, _: object = None) -> None:
        self.pool.append(self.study.ask(fixed_distributions=dict(SIX)))

    def ask(self, count: int, limit: float = LAST) -> Sequence[float] | None:
        self.pool = []
        return each(range(count), self._ask, limit)

    def adopt(self, count: int) -> None:
        with ShoalStorage(self.url) as maker:
            keys = maker.create_trials(self.study._study_id, [_running(self.chance) for _ in range(count)])
        self.pool = [optuna.Trial(self.study, key) for key in keys]

    def report(self, step: int, limit: float = LAST) -> Sequence[float] | None:
        return each(self.pool, lambda trial: trial.report(self.value(), step), limit)

    def decide(self, step: int, limit: float = LAST) -> Sequence[float] | None:
        return each(self.pool, optuna.Trial.should_prune, limit)

    def tell(self, limit: float = LAST) -> Sequence[float] | None:
        return each(self.pool, lambda trial: self.study.tell(trial, self.value()), limit)

    def drop(self) -> None:
        with ShoalStorage(self.url) as other:
            keys = [trial._trial_id for trial in self.pool]
            running = other.get_all_trials(self.study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
            with other.batch():
                for key in {trial._trial_id for trial in running}.intersection(keys):
                    other.set_trial_state_values(key, TrialState.COMPLETE, [self.value()])
        self.pool = []
        self.study.get_trials(deepcopy=False)

    def close(self) -> None:
        close_optuna_storage(self.study._storage)


class Grpc(Stock):
    """The same over Optuna's gRPC proxy, whose server has Optuna's own storage with its cache.

    `address` of the server; the URL is that of the server's database.
    """

    def __init__(self, url: str, size: int, address: tuple[str, int]) -> None:
        super().__init__(url, size)
        self.address = address
        self.calls = 0

    def storage(self) -> BaseStorage:
        from optuna.storages import GrpcStorageProxy

        host, port = self.address
        proxy = GrpcStorageProxy(host=host, port=port)
        proxy._stub = proxy._cache.grpc_client = _Counted(proxy._stub, self)
        return proxy

    def close(self) -> None:
        self.study._storage.close()  # type: ignore[attr-defined]


class _Counted:
    """The stub of a service, which counts its calls."""

    def __init__(self, stub: Any, counter: Grpc) -> None:
        self._stub = stub
        self._counter = counter

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stub, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._counter.calls += 1
            return method(*arguments, **options)

        return call


class Plain(Stock):
    """Optuna's API call by call, over our storage and with our pruner."""

    def storage(self) -> BaseStorage:
        return open_optuna_storage(self.url)

    def pruner(self) -> BasePruner:
        return TablePruner(MedianSettings(), max_epochs=EPOCHS)

    def adopt(self, count: int) -> None:
        storage = self.study._storage
        assert isinstance(storage, ShoalStorage)
        keys = storage.create_trials(self.study._study_id, [_running(self.chance) for _ in range(count)])
        self.pool = [optuna.Trial(self.study, key) for key in keys]


class Batch(Plain):
    """Optuna's API over our storage and with our pruner, the whole pool in a batch."""

    def _batch(self, new: Mapping[int, int] | None = None) -> Any:
        storage = self.study._storage
        assert isinstance(storage, ShoalStorage)
        return storage.batch(new=new)

    def ask(self, count: int, limit: float = LAST) -> None:
        with self._batch({self.study._study_id: count}):
            super().ask(count)

    def report(self, step: int, limit: float = LAST) -> None:
        with self._batch():
            super().report(step)

    def decide(self, step: int, limit: float = LAST) -> None:
        with self._batch():
            super().decide(step)

    def decide_by_optuna(self) -> None:
        """The same by Optuna's own pruner."""
        ours, self.study.pruner = self.study.pruner, MedianPruner()
        self.decide(0)
        self.study.pruner = ours

    def tell(self, limit: float = LAST) -> None:
        with self._batch():
            super().tell()
        self.pool = []

    def drop(self) -> None:
        self.tell()


class Worker(Arm):
    """The path of our own workers: leases, one write for a pool, and the rule for a pool.

    More than the others do: each epoch carries all its metrics, each claim and ending an event.
    """

    broker: Broker
    pool: list[Claim]

    def open(self) -> None:
        self.database = Database(self.url)
        self.optuna = open_optuna_storage(self.url)
        ledger = BatchedLedger(self.database, self.optuna)
        spec = ExperimentSpec.model_validate(
            SPEC
            | {
                "experiment": f"n{self.size}",
                "seed": SEED,
                "fixed": {"epochs": EPOCHS},
                "space": SPEC["space"] | {"model.dropout": {"low": 0.0, "high": 0.9}},
                "methods": {"random": {}},
                "replicates": 1,
                "budget": {"trials": 100_000},
                "pruner": "median",
            }
        )
        experiment = Experiments(self.database).get(f"n{self.size}")
        self.broker = Broker(
            self.database,
            self.optuna,
            experiment,
            spec,
            ledger=ledger,
            worker_id=ledger.register("benchmark"),
        )
        study_id = self.optuna.get_study_id_from_name(study_of(self.size))
        self.optuna.get_all_trials(study_id, deepcopy=False)
        self.pool = []

    def ask(self, count: int, limit: float = LAST) -> None:
        self.pool = self.broker.claim(count)
        assert len(self.pool) == count

    def adopt(self, count: int) -> None:
        claims: list[Claim] = []
        while len(claims) < count:  # while another worker asks this study there is nothing to be had
            claims += self.broker.claim(count - len(claims))
        self.pool = claims

    def reported(self, step: int, *, last: bool = False) -> list[Reported]:
        """What an engine says of the pool at the end of an epoch."""
        return [Reported(claim, _epoch(step, self.value()), last) for claim in self.pool]

    def report(self, step: int, limit: float = LAST) -> None:
        assert self.broker.store(self.reported(step)) == {}

    def decide(self, step: int, limit: float = LAST) -> None:
        verdicts = self.broker.judge(self.reported(step))
        assert len(verdicts) == len(self.pool)

    def tell(self, limit: float = LAST) -> None:
        endings = [Ending(lease=claim.lease, state="complete", value=self.value()) for claim in self.pool]
        assert not self.broker.holdings.write(endings=endings)
        self.pool = []

    def drop(self) -> None:
        self.tell()

    def close(self) -> None:
        close_optuna_storage(self.optuna)
        self.database.close()


def _epoch(step: int, value: float) -> EpochReport:
    return EpochReport(
        epoch=step,
        train_loss=1.0,
        validation_loss=1.0,
        metrics={"accuracy": value, "error": 1 - value, "log_loss": 0.1},
        gradient_norm=1.0,
        learning_rate=0.1,
        seconds=1.0,
        images_per_second=10_000.0,
    )


def _running(chance: random.Random) -> optuna.trial.FrozenTrial:
    """A running trial with all parameters."""
    draw = RandomSampler(seed=chance.getrandbits(32))
    params = {name: draw.sample_independent(None, None, name, kind) for name, kind in SIX.items()}  # type: ignore[arg-type]
    return optuna.trial.create_trial(
        state=TrialState.RUNNING, params=params, distributions=dict(SIX), value=None
    )


ARMS: dict[str, type[Arm]] = {
    "stock": Stock,
    "grpc": Grpc,
    "plain": Plain,
    "batch": Batch,
    "worker": Worker,
}
"""`stock`: RDBStorage with its cache; `grpc`: GrpcStorageProxy before it; the others are over our storage."""
OURS = ("plain", "batch", "worker")
