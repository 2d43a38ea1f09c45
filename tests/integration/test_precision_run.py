"""A run in bfloat16 stays one: whoever goes on with it in another precision is refused, and told what to do."""

from __future__ import annotations

import pytest

from search.controller import run_experiment
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import small_spec


@pytest.mark.parametrize("trainer", ["plain"])
def test_it_is_resumed_in_its_precision_alone(database: Database, trainer: str) -> None:
    def curves(experiment: str, trials: int, precision: str) -> tuple[str, str, list[float | None]]:
        spec = small_spec(
            experiment=experiment, methods={"random": {}}, budget={"trials": trials}, replicates=1
        )
        outcome = run_experiment(
            spec, database.url, in_process=True, device="cpu", trainer=trainer, precision=precision
        )
        points = Curves(database).of_experiment(Experiments(database).get(experiment).id)
        return outcome.state, str(outcome), [point.train_loss for point in points]

    state, _, first = curves("halved", 1, "bf16")
    assert state == "finished"
    state, said, after = curves("halved", 2, "fp32")
    print(state, said)
    assert state != "finished"
    assert "computed in bf16" in said
    assert after == first
    state, _, whole = curves("halved", 2, "auto")
    assert state == "finished"
    assert whole[: len(first)] == first
    _, _, straight = curves("straight", 2, "fp32")
    assert len(straight) == len(whole)
    assert straight != whole
