"""A run in bfloat16 stays one: whoever goes on with it in another precision is refused, and told why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search.control.controller import find_or_create, run_experiment
from search.experiment.spec import load_spec
from search.failures import CommandError
from search.trials.precisions import check_precision
from storage.curves import Curves
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.programs import Programs
from tests.contracts.experiments import small_spec
from tests.contracts.shoal_command import ONE_METHOD, Shoal, tiny


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


@pytest.mark.slow
def test_a_firing_and_a_worker_train_in_what_they_were_told(database: Database, tmp_path: Path) -> None:
    """`shoal schedule --precision` in a firing's process, and `shoal worker --precision` for another."""
    shoal = Shoal(tmp_path, os.environ | {URL_VARIABLE: database.url})
    here = ("--device", "cpu", "--trainer", "plain", "--precision", "bf16")

    def precisions(experiment: str) -> list[str]:
        return list(Programs(database).precisions(Experiments(database).get(experiment).id).values())

    shoal.write("nightly.yaml", tiny("nightly", *ONE_METHOD))
    shoal("schedule", "nightly.yaml", "--cron", "0 0 29 2 *", "--in-process", *here)
    shoal("schedule", "fire", "nightly")
    assert Experiments(database).get("nightly.g1").state == "finished"
    assert precisions("nightly.g1") == ["bf16"]
    refused = shoal("worker", "nightly.g1", "--precision", "fp32", code=2)
    assert "computed in bf16" in refused.stderr

    shoal.write("served.yaml", tiny("served", *ONE_METHOD))
    find_or_create(Experiments(database), load_spec(tmp_path / "served.yaml"))
    shoal("worker", "served", *here)
    assert Experiments(database).get("served").state == "finished"
    assert precisions("served") == ["bf16"]
