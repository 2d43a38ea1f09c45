"""Engines go on from a copy in memory as they do from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from objectives.base import Carried, CopyingEngine, EpochReport, FunctionTask, TrialFailure
from objectives.fused import FusedEngine
from objectives.fused import engine as engine_module
from objectives.fused.fusable import Fusing
from objectives.plugin import FunctionEngine
from objectives.trainer import PlainEngine
from tests.contracts.copying_contract import CopyingContract, begun, copied
from tests.contracts.engine_contract import GOOD, TASK, MakeEngine, run, trial


class Alone:
    """What trial 1 says in an engine that trains nothing else."""

    @pytest.fixture
    def alone(self, make_engine: MakeEngine) -> list[EpochReport | TrialFailure]:
        return run(make_engine(TASK), [trial(1)])[1]


class TestPlainEngine(Alone, CopyingContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda task: PlainEngine(task, "cpu")


class TestFusedEngine(Alone, CopyingContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda task: FusedEngine(task, "cpu", slots=4, rows=4, images_per_row=16)

    def test_a_copy_of_a_slot_is_no_use_to_one_that_trains_alone(
        self, make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its pool broke meanwhile: it goes on from its file."""
        engine = begun(make_engine, trial(1))
        engine.save(1, tmp_path / "saved")
        copy = copied(engine, 1)
        saved = dataclasses.replace(trial(1), checkpoint=tmp_path / "saved")
        monkeypatch.setattr(engine_module, "fusing", lambda *_: Fusing("alone", "it broke"))
        expected = run(make_engine(TASK), [saved])[1]
        assert len(expected) == GOOD.epochs - 1
        assert run(make_engine(TASK), [dataclasses.replace(saved, carried=Carried(copy))])[1] == expected


class TestFusedEngineAlone(Alone, CopyingContract):
    """Of trials that can't be fused."""

    @pytest.fixture
    def make_engine(self, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
        monkeypatch.setattr(engine_module, "fusing", lambda *_: Fusing("alone", "not here"))
        return lambda task: FusedEngine(task, "cpu", slots=4, rows=4, images_per_row=16)


def test_an_engine_of_functions_copies_nothing() -> None:
    """There is nothing to remember of a trial but how far it is."""
    task = FunctionTask(function="a:b", metric="value", direction="maximize", worst=0.0)
    assert not isinstance(FunctionEngine(task), CopyingEngine)
