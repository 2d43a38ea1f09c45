"""The first worker on a kind of device decides the precision, and whoever asks for another is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from objectives.base import ObjectiveError
from objectives.choices import ChoicesInMemory
from search.cli import run_command
from search.control.controller import find_or_create
from search.failures import CommandError, ExitCode
from search.trials.precisions import check_device, held_precision
from search.work.engines import make_engine
from search.work.programs import StoredChoices
from storage.database import Database
from storage.experiments import Experiments
from storage.programs import Programs
from tests.contracts.experiments import small_spec


def test_the_first_that_asks_decides() -> None:
    choices = ChoicesInMemory()
    assert held_precision(choices, "cpu", "bf16") == "bf16"
    assert held_precision(choices, "cpu", "auto") == "bf16"
    assert held_precision(choices, "cpu", "bf16") == "bf16"
    with pytest.raises(ObjectiveError, match="computed in bf16"):
        held_precision(choices, "cpu", "fp32")


def test_whoever_asks_for_nothing_begins_in_float32() -> None:
    choices = ChoicesInMemory()
    assert held_precision(choices, "cpu") == "fp32"
    with pytest.raises(ObjectiveError, match="computed in fp32"):
        held_precision(choices, "cpu", "bf16")


def test_two_that_ask_at_once_get_one_answer() -> None:
    """The second finds nothing, and is told what the first put."""
    choices = ChoicesInMemory()

    class Late(ChoicesInMemory):
        def get(self, key: object) -> None:  # type: ignore[override]  # finds nothing, ever
            held_precision(choices, "cpu", "bf16")

        put = choices.put

    with pytest.raises(ObjectiveError, match="computed in bf16"):
        held_precision(Late(), "cpu", "fp32")


def test_what_the_device_has_not_got_is_not_kept() -> None:
    choices = ChoicesInMemory()
    with pytest.raises(ObjectiveError, match="needs a GPU"):
        held_precision(choices, "cpu", "tf32")
    assert held_precision(choices, "cpu", "bf16") == "bf16"


@pytest.mark.parametrize("trainer", ["fused", "plain"])
def test_engines_are_made_in_it(trainer: str) -> None:
    choices = ChoicesInMemory()
    assert make_engine(small_spec(), trainer, "cpu", choices, "bf16")._task.precision == "bf16"  # type: ignore[attr-defined]  # both have one
    assert make_engine(small_spec(), trainer, "cpu", choices)._task.precision == "bf16"  # type: ignore[attr-defined]
    with pytest.raises(ObjectiveError, match="begin another experiment for fp32"):
        make_engine(small_spec(), trainer, "cpu", choices, "fp32")


def test_it_is_kept_with_the_experiment_and_is_no_program(database: Database) -> None:
    first, second = (
        StoredChoices(
            database, Experiments(database).create(name, {}, "0" * 64, {}, [("tpe", 0, f"{name}/0")]).id
        )
        for name in ("first", "second")
    )
    assert held_precision(first, "cpu", "bf16") == "bf16"
    assert held_precision(first, "cpu") == "bf16"
    assert held_precision(second, "cpu") == "fp32"
    assert Programs(database).of_experiment(Experiments(database).get("first").id) == []


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [("cuda", "auto", "sees 0 GPUs"), ("cuda", "tf32", "sees 0 GPUs"), ("cpu", "tf32", "needs a GPU")],
)
def test_what_no_worker_of_this_machine_could_do_is_refused(
    device: str, precision: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(CommandError, match=said) as raised:
        check_device(device, precision)
    assert raised.value.failure.code is ExitCode.BAD_INPUT


@pytest.mark.parametrize(("device", "precision"), [("auto", "auto"), ("cpu", "bf16"), ("auto", "fp32")])
def test_what_every_machine_can_do_is_taken(device: str, precision: str) -> None:
    check_device(device, precision)


def test_a_finished_experiment_is_not_begun_again_for_a_gpu_that_is_not_there(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that die of it would leave it failed."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    stored, _ = find_or_create(Experiments(database), small_spec())
    Experiments(database).set_state(stored.id, "finished")
    again = ["resume", stored.name, "--in-process", "--device", "cuda", "--database", database.url]
    assert run_command([*again, "--report", str(tmp_path)]) == ExitCode.BAD_INPUT
    assert Experiments(database).get(stored.name).state == "finished"
    assert run_command(["worker", stored.name, *again[3:]]) == ExitCode.BAD_INPUT
