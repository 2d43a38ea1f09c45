"""Fused engines that are small enough for tests, and the plain trainer's curves beside theirs."""

from __future__ import annotations

import pytest

from objectives.base import Engine, EpochReport, Task, TrialStart
from objectives.fused import FusedEngine
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import TASK, run

OWN = Task(data=TASK.data, allow_imports=("users_own",))


def small_engine(task: Task = OWN) -> FusedEngine:
    return FusedEngine(task, "cpu", slots=4, rows=4, images_per_row=16)


def assert_like_plain(engine: Engine, starts: list[TrialStart]) -> None:
    """The same curves, but for rounding."""
    expected = run(PlainEngine(OWN, "cpu"), starts)
    for trial_id, said in run(engine, starts).items():
        assert len(said) == len(expected[trial_id])
        for one, other in zip(said, expected[trial_id], strict=True):
            assert isinstance(one, EpochReport)
            assert isinstance(other, EpochReport)
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
            assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-3)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
            assert one.learning_rate == other.learning_rate
            assert one.metrics["accuracy"] == pytest.approx(other.metrics["accuracy"], abs=0.051)
