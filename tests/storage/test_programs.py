"""How trials train is decided once, however many decide at the same time."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from storage.errors import ExperimentNotFound, ValueRefused
from storage.programs import CONVOLUTIONS, PRECISION, Programs
from storage.records import ProgramRecord

FUSED = ProgramRecord(program="[]", batch=32, device="cpu", fused=True, fused_rate=2.0, alone_rate=1.0)
ALONE = ProgramRecord(program="[]", batch=32, device="cpu", fused=False, reason="slower")
WHAT = ("[]", 32, "cpu")


def test_of_many_that_decide_at_once_one_decides_for_all(database, experiment):
    programs, workers = Programs(database), 6
    together = Barrier(workers)

    def decide(number):
        together.wait()
        return programs.put(experiment.id, FUSED if number % 2 else ALONE)

    with ThreadPoolExecutor(workers) as pool:
        held = set(pool.map(decide, range(workers)))
    assert held == {programs.get(experiment.id, *WHAT)}
    assert programs.of_experiment(experiment.id) == list(held)


def test_what_cannot_be_is_refused(database, experiment):
    programs = Programs(database)
    for wrong in (
        ProgramRecord(program="[]", batch=32, device="cpu", fused=False),
        ProgramRecord(program="[]", batch=32, device="cpu", fused=True, reason="slower"),
        ProgramRecord(program="[]", batch=32, device="cpu", fused=True, slots=0),
        ProgramRecord(program="[]", batch=32, device="cpu", fused=True, fused_rate=float("inf")),
    ):
        with pytest.raises(ValueRefused):
            programs.put(experiment.id, wrong)
    with pytest.raises(ExperimentNotFound):
        programs.put(experiment.id + 1, FUSED)
    assert programs.of_experiment(experiment.id) == []


def test_what_is_decided_for_all_ways_is_not_among_them(database, experiment):
    programs = Programs(database)
    others = [dataclasses.replace(ALONE, program=program) for program in (PRECISION, CONVOLUTIONS + "[]")]
    for record in (*others, FUSED):
        assert programs.put(experiment.id, record) == record
    assert programs.of_experiment(experiment.id) == [FUSED]
    assert programs.precisions(experiment.id) == {"cpu": "slower"}
