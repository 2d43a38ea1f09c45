"""Many workers as real processes, at the cost of a few: one imports everything, the others are its forks.

    python -m tests.faults.crowd '{"experiment": "small", "workers": 24}'

Each has connections of its own, opened after the fork. They do what `search.control.crew.work`
does, on an engine that needs no torch. Exits with the number of those that ended with an error,
which they write to stderr. The URL of the database is in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from importlib import import_module

from search.control.crew import Lookout, leave_at_once, run_at
from search.experiment.spec import ExperimentSpec
from search.trials.broker import Broker
from search.trials.claims import Patience
from search.work.desk import Desk
from search.work.engines import trainer
from search.work.pulse import Pulse
from search.work.saving import Saver
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.ledger import lease_seconds
from storage.ledgers import ledger_of
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.fake_engine import FAKE

LATE = (
    "optuna",
    "psutil",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "storage.connections",
    "storage.embedded",
)
"""What a worker imports when it first needs it: here once for all, before they fork."""


def _work(url: str, name: str, worker: str) -> None:
    with Database(url, application_name=f"shoal {worker}") as database:
        experiments = Experiments(database)
        experiment = experiments.get(name)
        spec = ExperimentSpec.from_json(experiment.spec)
        engine = trainer(FAKE)(spec.task(), "cpu")
        storage = open_optuna_storage(url)
        ledger = Pulse(ledger_of(database, storage), lease_seconds=lease_seconds())
        worker_id = ledger.register(worker)
        broker = Broker(database, storage, experiment, spec, ledger=ledger, worker_id=worker_id)
        desk = Desk(
            broker,
            look=Lookout(experiments, experiment),
            interrupted=threading.Event(),
            patience=Patience(hang=600.0),
            abandon=leave_at_once,
        )
        with ledger.beating(broker.holdings):
            run_at(desk, engine, Saver(30.0))
        ledger.retire(worker_id)
        close_optuna_storage(storage)
    assert "torch" not in sys.modules, "it is not light"


def main(experiment: str, workers: int) -> int:
    """Fork, wait for all, count errors."""
    url = os.environ.pop(URL_VARIABLE)
    for name in LATE:
        import_module(name)
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(url, experiment, f"crowd-{number}")
                code = 0
            except BaseException:  # noqa: BLE001 (its exit code says it)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
