"""A run in bfloat16 stays one: whoever goes on with it in another precision is refused, and told why."""

from __future__ import annotations

import pytest

from search.control.controller import run_experiment
from search.failures import CommandError
from search.trials.precisions import check_precision
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import small_spec


def test_it_is_resumed_in_its_precision_alone(database: Database) -> None:
    def curves(experiment: str, trials: int, precision: str) -> tuple[str, str, list[float | None]]:
        spec = small_spec(
            experiment=experiment, methods={"random": {}}, budget={"trials": trials}, replicates=1
        )
        outcome = run_experiment(
            spec, database.url, in_process=True, device="cpu", trainer="plain", precision=precision
        )
        points = Curves(database).of_experiment(Experiments(database).get(experiment).id)
        return outcome.state, str(outcome), [point.train_loss for point in points]

    state, _, first = curves("halved", 1, "bf16")
    assert state == "finished"
    state, said, after = curves("halved", 2, "fp32")
    assert state != "finished"
    assert "computed in bf16" in said
    assert after == first
    with pytest.raises(CommandError, match=r"computed in bf16 on .*: none of them in fp32"):
        check_precision(database, "halved", "fp32")
    for asked in ("auto", "bf16"):
        check_precision(database, "halved", asked)
    check_precision(database, "not there yet", "fp32")
    state, _, whole = curves("halved", 2, "auto")
    assert state == "finished"
    assert whole[: len(first)] == first
    _, _, straight = curves("straight", 2, "fp32")
    assert len(straight) == len(whole)
    assert straight != whole
