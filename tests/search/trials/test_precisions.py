"""The first worker on a kind of device decides the precision, and whoever asks for another is refused."""

from __future__ import annotations

import pytest

from objectives.base import ObjectiveError
from objectives.choices import ChoicesInMemory
from search.trials.precisions import held_precision
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
