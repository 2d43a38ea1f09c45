"""Which sinks are asked for, and what a trial is called in them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from search.failures import CommandError, ExitCode
from search.observe.sinks import SINKS, SINKS_VARIABLE, Target, finals_of, name_of, target_of, targets
from tests.contracts.sink_contract import finished


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SINKS_VARIABLE, raising=False)


def test_the_place_is_all_after_the_first_colon() -> None:
    assert target_of("mlflow:http://host:5000") == Target("mlflow", "http://host:5000")
    assert target_of("tensorboard:C:/runs") == Target("tensorboard", "C:/runs")


@pytest.mark.parametrize("said", ["", "mlflow", "mlflow:", ":x", "wandb:x", "tensorboard"])
def test_what_is_no_sink_is_bad_input(said: str) -> None:
    with pytest.raises(CommandError) as refused:
        target_of(said)
    assert refused.value.failure.code is ExitCode.BAD_INPUT
    assert all(name in refused.value.failure.next for name in SINKS)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(CommandError) as refused:
        target_of("mlflow:https://me:hunter2@host")
    assert "MLFLOW_TRACKING_PASSWORD" in refused.value.failure.next
    assert "hunter2" not in str(refused.value.failure)


def test_the_environment_adds_and_each_sink_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SINKS_VARIABLE, "tensorboard:a, mlflow:http://h:5000,,tensorboard:a")
    assert targets(["tensorboard:b", "tensorboard:a"]) == [
        Target("tensorboard", "b"),
        Target("tensorboard", "a"),
        Target("mlflow", "http://h:5000"),
    ]


def test_a_library_that_is_missing_is_said_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "mlflow" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert targets(["tensorboard:a"])
    with pytest.raises(CommandError) as refused:
        targets(["tensorboard:a", "mlflow:http://h"])
    assert refused.value.failure.next == "pip install 'shoal[mlflow]'"


def test_names_tell_searches_and_retrainings_apart() -> None:
    assert name_of(finished()) == "tpe/0/3"
    assert name_of(replace(finished(), role="retraining")) == "tpe/0/retrained/3"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None])
def test_a_value_that_is_not_finite_is_left_out(value: float | None) -> None:
    assert "value" not in finals_of(finished(value=value))
