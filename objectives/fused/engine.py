"""The fused engine: many trials on one device, in slots that are refilled as trials end.

A trial comes in by `admit`, at any time. Its architecture decides which pool it joins (`program.py`,
`pool.py`); its numbers are written into a free row of the pool's stacked tensors, and from then on it takes
part in the pool's steps at its own place in its own epoch (`feed.py`). At its epoch's end it is validated
together with the others that are due (`scoring.py`), says its report and goes on, until `retire` wipes its
row for the next. What can't be fused, or is not faster so, trains alone in the plain trainer. Pools and
such trials take turns (`lanes.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from torch import nn

from objectives import checkpoints
from objectives.base import (
    EpochEnd,
    EpochReport,
    SlotError,
    StateCopy,
    Task,
    TrialFailure,
    TrialStart,
    derive_seed,
)
from objectives.choices import Choices, ChoicesError, ProgramChoice, ProgramKey
from objectives.datasets import SearchData, load
from objectives.devices import check_works, memory_of, prepare, reproducible
from objectives.fused.choose import choose, choose_convolutions, key_of, told
from objectives.fused.compiled import PROCESS
from objectives.fused.fusable import Fusing, fusing, one_image_left, why_not
from objectives.fused.lanes import AloneLane, BrokenError, Lane, NoRoomError, PoolLane, alone_from
from objectives.fused.member import Member, member
from objectives.fused.memory import IMAGES_PER_ROW, Sizes, usual_sizes
from objectives.fused.moving import from_plain
from objectives.fused.pool import Pool
from objectives.fused.program import Architecture, Program, architecture, template
from objectives.fused.state import Row
from objectives.models import build
from objectives.trainer import PlainEngine, failure_of

logger = logging.getLogger(__name__)

Event: TypeAlias = EpochEnd | TrialFailure

EMPTY_POOLS = 4
"""Pools without a trial that are kept for the next one of their architecture."""


class FusedEngine:
    """An `Engine` with `slots` slots (None: `SLOTS`), that trains what is in them together.

    A step has at most `rows` rows of `images_per_row` images; the first decides speed and memory only, the
    second shows in the last bits of a curve, as `threads` does (the CPU's; None: the process's own). With
    `choices`, trials whose kind trains faster one by one do so, as a short measurement says or as was chosen
    before; without, all are fused that can be. Raises `ObjectiveError` for a device that isn't there.
    """

    def __init__(
        self,
        task: Task,
        device: str = "auto",
        *,
        slots: int | None = None,
        rows: int | None = None,
        images_per_row: int = IMAGES_PER_ROW,
        threads: int | None = 1,
        choices: Choices | None = None,
    ) -> None:
        self._task = task
        self._device = prepare(device)
        self._sizes = usual_sizes(self._device.type, slots, rows, images_per_row)
        self._threads = threads
        self._choices = choices
        self._waiting: dict[int, TrialStart] = {}
        self._lanes: dict[int, Lane] = {}
        self._pools: dict[Architecture, PoolLane] = {}
        self._forms: dict[Architecture, Fusing] = {}
        self._chosen: dict[ProgramKey, tuple[Architecture, ProgramChoice]] = {}
        self._backends: dict[Architecture, tuple[str, ...] | None] = {}
        """Of their convolutions, as chosen; None: the usual ones."""
        self.programs_built = 0
        """So far; a trial that is admitted makes one only as the first of its kind."""
        self.images_trained = 0
        """So far, counted as trials come to the ends of their epochs."""
        self._images: dict[int, int] = {}
        """Of an epoch, by trial."""

    @property
    def slots(self) -> int:
        """How many trials it has room for; fewer than in the beginning if memory turned out short."""
        return self._sizes.slots

    def device_memory(self) -> Mapping[str, int]:
        """A GPU's memory in bytes, see `objectives.devices.memory_of`. May be asked by any thread."""
        return memory_of(self._device)

    @property
    def free_slots(self) -> int:
        return max(0, self._sizes.slots - len(self._waiting) - len(self._lanes))

    def admit(self, start: TrialStart) -> None:
        if start.trial_id in self._waiting or start.trial_id in self._lanes:
            raise SlotError(f"trial {start.trial_id} is held already")
        if self.free_slots <= 0:
            raise SlotError(f"trial {start.trial_id}: all {self._sizes.slots} slots are taken")
        self._waiting[start.trial_id] = start

    def advance(self) -> Sequence[Event]:
        """Train until a trial is at the end of an epoch. Empty if there is none, or all have ended.

        Raises `ChoicesError`: trials that wait go on waiting. And `DeviceLostError`: nothing goes on.
        """
        with reproducible(self._threads, self._task.precision):
            events = self._place_waiting()
            while not events:
                lanes = [lane for lane in dict.fromkeys(self._lanes.values()) if lane.active]
                if not lanes:
                    break
                events = self._run(min(lanes, key=lambda lane: lane.seconds))
                self.images_trained += sum(
                    self._images[event.trial_id] for event in events if isinstance(event, EpochEnd)
                )
        if any(isinstance(event, TrialFailure) for event in events):
            check_works(self._device)
        for event in events:
            if isinstance(event, TrialFailure):
                self._lanes.pop(event.trial_id, None)
                self._images.pop(event.trial_id, None)
        return events

    def retire(self, trial_id: int) -> None:
        if self._waiting.pop(trial_id, None) is None:
            with reproducible(self._threads, self._task.precision):  # a thread more only waits for others
                self._lane(trial_id).retire(trial_id)
            del self._lanes[trial_id]
            self._images.pop(trial_id, None)
            self._drop_empty_pools()

    def save(self, trial_id: int, path: Path) -> None:
        """As `Engine.save`; also raises `SlotError` before the end of the trial's first epoch."""
        self._at_end(trial_id).save(trial_id, path)

    def copy_of(self, trial_id: int) -> StateCopy:
        """As `CopyingEngine.copy_of`."""
        return self._at_end(trial_id).copy_of(trial_id)

    @property
    def occupancy(self) -> float:
        """Part of the rows of all steps that belonged to a trial, in (0, 1]; 1 before the first step."""
        pools = [lane.pool for lane in self._pools.values()]
        return sum(pool.rows_used for pool in pools) / (sum(pool.rows_run for pool in pools) or 1) or 1.0

    @property
    def convolutions(self) -> list[Mapping[str, str]]:
        """Of each program that has some: layer → the backend of this convolution."""
        programs = [lane.pool.program for lane in self._pools.values()]
        return [program.convolutions for program in programs if program.convolutions]

    @property
    def held_back(self) -> list[str]:
        """What makes training slower here than it might be, as far as is known; for those who measure it."""
        found = [reason for lane in self._pools.values() for reason in lane.held_back]
        return found + [f"updates are not compiled: {why}" for why in (PROCESS.why_not,) if why]

    def why_alone(self, trial_id: int) -> str | None:
        """Why a trial trains alone; None if it doesn't, or hasn't begun."""
        lane = self._lanes.get(trial_id)
        return lane.reason if isinstance(lane, AloneLane) else None

    def _at_end(self, trial_id: int) -> Lane:
        """The lane of a trial that has ended an epoch, as far as is known here."""
        if trial_id in self._waiting:
            raise SlotError(f"trial {trial_id} is not at the end of an epoch, there is nothing to save")
        return self._lane(trial_id)

    def _lane(self, trial_id: int) -> Lane:
        if trial_id not in self._lanes:
            raise SlotError(f"trial {trial_id} has no slot here")
        return self._lanes[trial_id]

    def _place_waiting(self) -> list[Event]:
        events: list[Event] = []
        for trial_id, start in list(self._waiting.items()):
            event = self._place(start)
            del self._waiting[trial_id]
            if event:
                events.append(event)
        return events

    def _run(self, lane: Lane) -> list[Event]:
        try:
            return list(lane.run())
        except BrokenError as error:
            assert isinstance(lane, PoolLane), "only pools break"
            check_works(self._device)
            self._scatter(lane, f"it raised in training with others: {error.__cause__}")
            return []
        except NoRoomError as error:
            assert isinstance(lane, PoolLane), "only pools need room for slots"
            self._pools = {key: other for key, other in self._pools.items() if other is not lane}
            return [failure_of(mine.start.trial_id, error.error) for mine in lane.members]

    def _scatter(self, lane: PoolLane, reason: str) -> None:
        """Let the trials of a broken pool go on alone, and those that come later."""
        (key,) = [key for key, pool in self._pools.items() if pool is lane]
        logger.warning("trials of %s train one by one: %s", key[0], reason)
        self._forms[key] = Fusing("alone", reason)
        for mine in lane.members:
            if not mine.ended:
                trial_id = mine.start.trial_id
                alone = alone_from(mine, lane.pool, self._task, self._plain(), reason)
                lane.retire(trial_id)
                self._join(trial_id, alone)

    def _place(self, start: TrialStart) -> Event | None:
        """Give a trial a lane. What raises is its failure."""
        try:
            return self._choose_lane(start)
        except ChoicesError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a trial raises is that trial's failure)
            self._lanes.pop(start.trial_id, None)
            return failure_of(start.trial_id, error)

    def _choose_lane(self, start: TrialStart) -> Event | None:
        data = load(self._task.data, start.split_seed, self._device)
        self._images[start.trial_id] = len(data.training_indices)
        seed = derive_seed(start.seed, "init")
        model = build(start.config.model, data.input_shape, data.classes, seed, self._task.allow_imports)
        key = architecture(start.config, data.input_shape, data.classes)
        reason = (
            why_not(start.config, self._device)
            or one_image_left(start.config, model, len(data.training_indices))
            or self._why_alone(key, start, model, data)
        )
        if reason:
            self._join(start.trial_id, AloneLane(start, self._plain(), reason))
            return None
        return self._join_pool(key, start, model, data)

    def _why_alone(
        self, key: Architecture, start: TrialStart, model: nn.Module, data: SearchData
    ) -> str | None:
        """Why a trial that could be fused by itself trains alone; None: it is fused, and has a pool."""
        if key not in self._forms:
            self._forms[key] = fusing(model, data.input_shape)
        form = self._forms[key]
        if form.reason:
            return form.reason
        sizes = self._sizes
        if self._choices:
            if form.form == "stacked" and key not in self._backends:
                self._backends[key] = choose_convolutions(
                    self._task, start.config, data, sizes, self._choices, threads=self._threads
                )
            chosen = self._chosen_for(key, start, data, self._choices)
            if not chosen.fused:
                return chosen.reason
            sizes = sizes.within(chosen.slots, chosen.rows)
        if key not in self._pools:
            blank = template(start.config, data.input_shape, data.classes, self._task)
            generic = form.form == "vmapped"

            def make(sizes: Sizes) -> Pool:
                program = Program(
                    blank,
                    data.input_shape,
                    sizes.slots,
                    self._device,
                    generic=generic,
                    precision=self._task.precision,
                    convolutions=self._backends.get(key),
                )
                return Pool(program, data.images, sizes.rows, sizes.images_per_row)

            lane = PoolLane(make, sizes, self._task, lambda found: self._remember(key, found))
            self._pools[key] = lane
            self.programs_built += 1
            if lane.sizes != sizes:
                self._remember(key, lane.sizes)
        return None

    def _chosen_for(
        self, key: Architecture, start: TrialStart, data: SearchData, choices: Choices
    ) -> ProgramChoice:
        kind = key_of(start.config, data, self._device)
        if kind not in self._chosen:
            chosen = choose(
                self._task,
                start.config,
                data,
                self._sizes,
                choices,
                threads=self._threads,
                convolutions=self._backends.get(key),
            )
            self._chosen[kind] = key, chosen
            if chosen.fused and chosen.slots is not None:
                self._sizes = self._sizes.within(chosen.slots, None)
        return self._chosen[kind][1]

    def _remember(self, key: Architecture, found: Sizes) -> None:
        """From now on, and in the next run, no more than memory had room for."""
        logger.warning(
            "too little memory: %s trains in steps of %s rows, in %s slots", key[0], found.rows, found.slots
        )
        self._sizes = self._sizes.within(found.slots, None)
        for kind, (architecture_of_kind, chosen) in list(self._chosen.items()):
            if self._choices and chosen.fused and architecture_of_kind == key:
                limited = replace(chosen, slots=found.slots, rows=found.rows)
                self._chosen[kind] = key, told(self._choices, kind, limited)

    def _join_pool(
        self, key: Architecture, start: TrialStart, model: nn.Module, data: SearchData
    ) -> Event | None:
        lane = self._pools[key]
        program = lane.pool.program
        made = member(
            start,
            program.state.idle,  # until there is a slot for it
            data,
            model=model,
            program=program,
            allow_imports=self._task.allow_imports,
        )
        self._resume(made, model, program)
        lane.admit(made)
        self._join(start.trial_id, lane)
        if made.ended and made.report:
            return EpochEnd(start.trial_id, made.report, last=True, test=lane.test_score(made))
        return None

    def _resume(self, made: Member, model: nn.Module, program: Program) -> None:
        """Let a trial start from what it was, if that is of any use: a copy, else its checkpoint."""
        found = self._carried(made.start, program) or self._read(made, model, program)
        if found is None:
            return
        made.saved, made.report = found
        made.epoch = made.report.epoch
        made.ended = made.report.diverged or made.epoch >= made.config.epochs

    def _carried(self, start: TrialStart, program: Program) -> tuple[Row, EpochReport] | None:
        copy = start.carried.take() if start.carried else None
        if copy is None or copy.fingerprint != checkpoints.fingerprint(start, self._task.data):
            return None
        if not (isinstance(copy.state, Row) and program.state.takes(copy.state)):
            return None
        return copy.state, copy.report

    def _read(self, made: Member, model: nn.Module, program: Program) -> tuple[Row, EpochReport] | None:
        path = made.start.checkpoint
        if path is None:
            return None
        found = checkpoints.load(path, checkpoints.fingerprint(made.start, self._task.data))
        if found is None:
            return None
        try:
            return from_plain(found.state, program.state, made.config, model), found.report
        except (KeyError, ValueError, RuntimeError) as error:
            logger.warning("checkpoint %s does not fit, the trial starts anew: %s", path, error)
            return None

    def _join(self, trial_id: int, lane: Lane) -> None:
        """Put a trial's lane among those that take turns; it has waited no longer than the others."""
        if lane not in self._lanes.values():
            others = [other.seconds for other in self._lanes.values() if other.active]
            lane.seconds = min(others, default=0.0)
        self._lanes[trial_id] = lane

    def _plain(self) -> PlainEngine:
        return PlainEngine(self._task, str(self._device), threads=self._threads)

    def _drop_empty_pools(self) -> None:
        """Give back the memory of pools that have had no trial for longest."""
        empty = [key for key, lane in self._pools.items() if not lane.members]
        for key in empty[: max(0, len(empty) - EMPTY_POOLS)]:
            del self._pools[key]
