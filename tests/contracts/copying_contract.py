"""What every engine keeps that copies states: inherit `CopyingContract` beside `EngineContract`.

A trial that goes on from a copy is the trial that goes on from the file that was written at the same moment.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from objectives import checkpoints
from objectives.base import (
    Carried,
    Choice,
    CopyingEngine,
    Engine,
    EpochReport,
    SlotError,
    StateCopy,
    TrialFailure,
    TrialStart,
)
from objectives.models import build
from tests.contracts.engine_contract import GOOD, TASK, MakeEngine, advance_to_end_of, run, trial

KINDS = ("sgd", "momentum", "adam", "adagrad")
"""Optimizers that keep nothing, one and two numbers per weight, and one that keeps the second alone."""


def copied(engine: Engine, trial_id: int) -> StateCopy:
    assert isinstance(engine, CopyingEngine)
    return engine.copy_of(trial_id)


def begun(make: MakeEngine, start: TrialStart, epochs: int = 1) -> Engine:
    """An engine that holds a trial which has trained so long, beside another."""
    engine = make(TASK)
    engine.admit(start)
    if engine.free_slots:
        engine.admit(trial(9))
    for _ in range(epochs):
        advance_to_end_of(engine, start.trial_id)
    return engine


class CopyingContract:
    """The suite; every test gets engines of its own."""

    @pytest.fixture
    def no_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("a checkpoint is read")

        monkeypatch.setattr(checkpoints, "load", refuse)

    @pytest.mark.parametrize("optimizer", KINDS)
    def test_a_copy_is_to_the_bit_what_the_file_is(
        self, make_engine: MakeEngine, tmp_path: Path, optimizer: str
    ) -> None:
        start = trial(1, dataclasses.replace(GOOD, optimizer=Choice(optimizer)))
        engine = begun(make_engine, start)
        path = tmp_path / "saved"
        engine.save(1, path)
        ways = {"copy": {"carried": Carried(copied(engine, 1))}, "file": {"checkpoint": path}}
        after = {}
        for way, how in ways.items():
            again = begun(make_engine, dataclasses.replace(start, **how))
            again.save(1, tmp_path / way)
            after[way] = checkpoints.load(tmp_path / way, checkpoints.fingerprint(start, TASK.data))
        assert after["copy"] is not None
        assert after["file"] is not None
        assert (after["copy"].report.epoch, after["file"].report.epoch) == (2, 2)
        assert same_bits(after["copy"].state, after["file"].state)

    def test_who_has_a_copy_reads_no_file(
        self,
        make_engine: MakeEngine,
        no_files: None,
        alone: list[EpochReport | TrialFailure],
        tmp_path: Path,
    ) -> None:
        carried = Carried(copied(begun(make_engine, trial(1)), 1))
        resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "not read", carried=carried)
        assert run(make_engine(TASK), [trial(2), resumed])[1] == alone[1:]
        assert carried.take() is None, "it is let go of"

    def test_a_copy_stays_what_it_was(
        self, make_engine: MakeEngine, no_files: None, alone: list[EpochReport | TrialFailure]
    ) -> None:
        """Whatever becomes of its trial in the engine that made it, and in the one that is given it."""
        engine = begun(make_engine, trial(1))
        copy = copied(engine, 1)
        advance_to_end_of(engine, 1)
        engine.retire(1)
        for _ in range(2):
            resumed = dataclasses.replace(trial(1), carried=Carried(copy))
            assert run(make_engine(TASK), [resumed])[1] == alone[1:]

    def test_a_copy_says_what_it_is_of_and_what_it_takes(self, make_engine: MakeEngine) -> None:
        engine = begun(make_engine, trial(1), epochs=2)
        copy = copied(engine, 1)
        assert (copy.report.epoch, copy.fingerprint) == (2, checkpoints.fingerprint(trial(1), TASK.data))
        # Weights, and Adam's two numbers for each, of float32; then running statistics and counts of steps.
        model = build(GOOD.model, (1, 8, 8), 10, 0)
        numbers = 3 * 4 * sum(parameter.numel() for parameter in model.parameters())
        assert numbers < copy.size < numbers + 500

    @pytest.mark.parametrize("what", ["another trial's", "of another kind", "of other shapes"])
    def test_a_copy_of_no_use_is_passed_over_for_the_file(
        self,
        make_engine: MakeEngine,
        alone: list[EpochReport | TrialFailure],
        tmp_path: Path,
        what: str,
    ) -> None:
        engine = begun(make_engine, trial(1))
        engine.save(1, tmp_path / "saved")
        copy = copied(engine, 1)
        if what == "another trial's":
            copy = copied(begun(make_engine, trial(2)), 2)
        elif what == "of another kind":
            copy = dataclasses.replace(copy, state=object())
        else:
            wide = Choice("cnn", {**GOOD.model.options, "width": 5})
            other = copied(begun(make_engine, trial(1, dataclasses.replace(GOOD, model=wide))), 1)
            copy = dataclasses.replace(copy, state=other.state)
        resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "saved", carried=Carried(copy))
        assert run(make_engine(TASK), [resumed])[1] == alone[1:]

    def test_nothing_can_be_copied_before_the_first_epoch_ends(self, make_engine: MakeEngine) -> None:
        engine = make_engine(TASK)
        engine.admit(trial(1))
        with pytest.raises(SlotError):
            copied(engine, 1)
        with pytest.raises(SlotError):
            copied(engine, 2)


def same_bits(mine: Any, theirs: Any) -> bool:
    """Whether two states are the same to the last bit, tensors and plain values."""
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same_bits(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same_bits, mine, theirs))
    return bool(mine == theirs)
