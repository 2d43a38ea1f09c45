"""What benchmarks time: every way trains the same trials for the same epochs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from objectives.base import Choice, DataSpec, EpochEnd, ObjectiveError, Task, TrialFailure, TrialStart
from objectives.bench import (
    BASE,
    FUSED,
    Ran,
    Work,
    lived_through,
    measured,
    run,
    table,
    task_of,
    timed,
    ways,
)
from objectives.bench_fused import fused_ways
from objectives.choices import CONVOLUTIONS, AlwaysFused, ProgramChoice, ProgramKey
from objectives.fused import FusedEngine
from objectives.losses import LOSSES
from objectives.trainer import PlainEngine

DATA = DataSpec(name="digits", limit=100)
SMALL = Choice("cnn", {"depth": 1, "width": 2, "dense": 4})
WORK = Work(DATA, trials=6, model=SMALL, rungs=(1, 2), batch_sizes=(16, 48))


class Counting(PlainEngine):
    """Counts what its trials reported."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, "cpu")
        self.epochs: dict[int, int] = {}
        self.images = 0.0

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        events = super().advance()
        for event in events:
            assert isinstance(event, EpochEnd)
            self.epochs[event.trial_id] = event.report.epoch
        return events


def test_trials_end_as_under_successive_halving() -> None:
    ends = list(Work(DATA, trials=27).ends().values())
    assert [ends.count(epochs) for epochs in (1, 3, 9)] == [18, 6, 3]


def test_trials_differ_in_all_that_one_program_mixes() -> None:
    configs = [start.config for start in Work(DATA, trials=56).starts()]
    assert {config.loss.name for config in configs} == set(LOSSES)
    assert len({(config.loss.name, config.optimizer.name) for config in configs}) == 56
    assert {config.batch_size for config in configs} == {32, 64, 128}
    alike = [start.config for start in Work(DATA, trials=5, mixed=False, batch_sizes=(32,)).starts()]
    assert alike == [alike[0]] * 5


def test_every_trial_is_trained_to_its_end_and_no_further() -> None:
    engine = Counting(Task(data=DATA))
    run(engine, WORK.starts(), WORK.ends())
    assert engine.epochs == WORK.ends() == {0: 2, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
    assert engine.free_slots == 1
    assert WORK.images() == 80 * 8


def test_a_trial_that_fails_is_told() -> None:
    (start,) = Work(DATA, trials=1, model=Choice("cnn", {"depth": 9})).starts()
    with pytest.raises(ObjectiveError, match="trial 0"):
        run(
            PlainEngine(Task(data=DATA), "cpu"),
            [TrialStart(trial_id=0, config=start.config, seed=1, split_seed=0, checkpoint=None)],
            {0: 1},
        )


def test_slots_are_refilled_in_one_program() -> None:
    engine = FusedEngine(Task(data=DATA), "cpu", slots=2, images_per_row=16)
    ran = timed(engine, WORK.starts(), WORK.ends())
    assert ran.programs == 1
    assert ran.occupancy is not None
    assert 0.5 < ran.occupancy <= 1
    assert ran.cpu_seconds is not None
    assert ran.cpu_seconds > 0


def test_rates_and_ratios() -> None:
    results = {
        BASE: [Ran(4.0, 2.0), Ran(8.0, 4.0)],
        FUSED: [Ran(4.0, 1.0, 0.9, 1), Ran(4.0, 1.0, 0.9, 1)],
        "2 processes": [Ran(2.0, None), Ran(2.0, None)],
    }
    rows = {row["way"]: row for row in table(results, WORK)}
    assert rows[BASE]["ratio"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert rows[FUSED]["ratio"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert rows[FUSED]["images_per_cpu_second"] == {"median": 640.0, "least": 640.0, "most": 640.0}
    assert rows["2 processes"]["ratio"] == {"median": 3.0, "least": 2.0, "most": 4.0}
    assert (rows[FUSED]["ratio_of"], rows["2 processes"]["ratio_of"]) == ("CPU seconds", "seconds")
    assert rows["2 processes"]["images_per_second"] == {"median": 320.0, "least": 320.0, "most": 320.0}
    assert rows["2 processes"]["trials_per_hour"] == {"median": 10800.0, "least": 10800.0, "most": 10800.0}


def test_ways_take_turns() -> None:
    order: list[str] = []

    def way(name: str) -> Ran:
        order.append(name)
        return Ran(1.0, 1.0)

    found = measured({"a": lambda: way("a"), "b": lambda: way("b")}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(ran) for name, ran in found.items()} == {"a": 2, "b": 2}


def test_a_way_that_can_not_be_costs_the_others_nothing() -> None:
    def broken() -> Ran:
        raise ObjectiveError("no such thing here")

    left_out: dict[str, str] = {}
    found = measured({BASE: lambda: Ran(1.0, 1.0), "other": broken}, 3, left_out=left_out)
    assert {name: len(ran) for name, ran in found.items()} == {BASE: 3}
    assert left_out == {"other": "no such thing here"}
    with pytest.raises(ObjectiveError):
        measured({BASE: broken, "other": lambda: Ran(1.0, 1.0)}, 3, left_out={})


def test_a_way_that_breaks_keeps_the_rounds_it_had_and_is_not_tried_again() -> None:
    tries: list[int] = []

    def breaking() -> Ran:
        tries.append(1)
        if len(tries) == 3:
            raise ObjectiveError("lost its way")
        return Ran(1.0, None)

    left_out: dict[str, str] = {}
    first: dict[str, float] = {}
    told: list[dict[str, int]] = []
    found = measured(
        {BASE: lambda: Ran(1.0, None), "other": breaking},
        4,
        left_out=left_out,
        first=first,
        kept=lambda results: told.append({name: len(ran) for name, ran in results.items()}),
    )
    assert {name: len(ran) for name, ran in found.items()} == {BASE: 4, "other": 1}
    assert len(tries) == 3
    assert left_out == {"other": "round 2: lost its way"}
    assert first.keys() == {BASE, "other"}
    assert told[:2] == [{BASE: 1}, {BASE: 1, "other": 1}]
    assert told[-1] == {BASE: 4, "other": 1}


def test_an_engine_lives_through_all_rounds() -> None:
    made: list[FusedEngine] = []

    def make() -> FusedEngine:
        made.append(FusedEngine(task_of(WORK, "cpu", "fp32"), "cpu", slots=3))
        return made[-1]

    way = lived_through(make, WORK.starts()[:3], dict.fromkeys(range(3), 1))
    assert [way().programs for _ in range(2)] == [1, 1]
    assert len(made) == 1
    assert made[0].free_slots == 3


def test_nothing_is_begun_that_would_end_too_late() -> None:
    begun: list[str] = []

    def way(name: str, seconds: float) -> Ran:
        begun.append(name)
        return Ran(seconds, None)

    left_out: dict[str, str] = {}
    ways_of = {BASE: lambda: way(BASE, 0.0), "long": lambda: way("long", 1e6)}
    found = measured(ways_of, 3, until=time.perf_counter() + 1e3, left_out=left_out)
    assert {name: len(ran) for name, ran in found.items()} == {BASE: 3, "long": 1}
    assert begun.count("long") == 2
    assert measured(ways_of, 3, until=0.0, left_out=left_out) == {}
    assert left_out == dict.fromkeys(ways_of, "there was no time for it")


def test_ways_that_trained_other_trials_are_held_against_the_base_per_image() -> None:
    twice = replace(WORK, trials=12)
    assert twice.images() == 2 * WORK.images()
    rows = table({BASE: [Ran(4.0, None)], FUSED: [Ran(2.0, None, memory=7)]}, WORK, {FUSED: twice})
    assert rows[1]["ratio"] == {"median": 4.0, "least": 4.0, "most": 4.0}
    assert (rows[1]["n"], rows[1]["memory_bytes"]) == (1, 7)
    assert rows[1]["trials_per_hour"] == {"median": 21600.0, "least": 21600.0, "most": 21600.0}


def test_ways_are_in_the_precision_that_was_asked_for() -> None:
    assert task_of(WORK, "cpu", "bf16").precision == "bf16"
    found = fused_ways(lambda slots: replace(WORK, trials=slots), "cpu", [2, 3], ["fp32", "bf16"])
    assert list(found) == [f"fused, {n} slots, {p}" for n in (2, 3) for p in ("fp32", "bf16")]
    way, work = found["fused, 3 slots, bf16"]
    assert work.trials == 3
    assert way().programs == 1
    with pytest.raises(ObjectiveError, match="needs a GPU"):
        task_of(WORK, "cpu", "tf32")


def test_fused_ways_are_fused_and_their_convolutions_measured() -> None:
    """As an experiment's are: the usual ones are what nobody has measured."""
    choices = AlwaysFused()
    assert choices.get(ProgramKey("cnn", 32, "gpu")) == ProgramChoice(fused=True)
    of_convolutions = ProgramKey(CONVOLUTIONS + "cnn", 1, "gpu")
    assert choices.get(of_convolutions) is None
    held = choices.put(of_convolutions, ProgramChoice(fused=True, convolutions=("im2col",)))
    assert choices.get(of_convolutions) == held
    held = choices.put(ProgramKey("cnn", 32, "gpu"), ProgramChoice(fused=True, slots=3))
    assert choices.get(ProgramKey("cnn", 32, "gpu")) == held
    engine = FusedEngine(task_of(WORK, "cpu", "fp32"), "cpu", slots=3, choices=choices)
    run(engine, WORK.starts()[:3], dict.fromkeys(range(3), 1))
    assert engine.programs_built == 1


def test_what_held_an_engine_back_is_told() -> None:
    engine = FusedEngine(task_of(WORK, "cpu", "fp32"), "cpu", slots=3)
    ran = timed(engine, WORK.starts()[:3], dict.fromkeys(range(3), 1))
    assert ran.held_back == []
    (lane,) = engine._pools.values()
    lane.pool.why_unrecorded = "not here"
    lane.sizes = replace(lane.sizes, rows=2, slots=1)
    assert engine.held_back == [
        "steps are not recorded: not here",
        "too little memory: steps of 2 rows, 1 slots",
    ]
    told = Ran(1.0, None, held_back=engine.held_back)
    assert table({BASE: [told]}, WORK)[0]["held_back"] == engine.held_back


@pytest.mark.slow
def test_every_way_trains_the_work() -> None:
    with ways(WORK, "cpu", processes=(2,)) as found:
        assert list(found) == [BASE, FUSED, "as chosen (default)", "2 processes"]
        for way in found.values():
            assert way().seconds > 0
