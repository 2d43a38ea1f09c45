"""How fast trials of a program train fused and alone on this device, by trying; for engines and plans.

Fusing pays where a model is too small to fill a device. On a CPU it is often a draw, and the faster way
differs from machine to machine and from batch to batch: so it is measured, once per program and size of
batch, and remembered (`choices.py`). On a GPU the backends of a program's convolutions are chosen before, for
all its trials, in the same manner (`backends.py`).
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from objectives import graphed
from objectives.base import Choice, Task, TrialConfig, TrialStart, derive_seed
from objectives.choices import ANY_BATCH, Choices, ChoicesError, ChoicesInMemory, ProgramChoice, ProgramKey
from objectives.choices import CONVOLUTIONS as OF_CONVOLUTIONS
from objectives.datasets import SearchData, load
from objectives.devices import kind_of_device, prepare, reproducible, seeded
from objectives.fused.backends import fastest, setting_of
from objectives.fused.convolutions import CONVOLUTIONS, Setting, Shape, shapes_of
from objectives.fused.fusable import fusing, why_not
from objectives.fused.member import Member, member
from objectives.fused.memory import Sizes, fewer, fitting, usual_sizes
from objectives.fused.pool import Pool
from objectives.fused.program import Program, architecture, template
from objectives.measure import MOST_IMAGES
from objectives.models import build
from objectives.optimizers import OPTIMIZERS, effective_batch_size
from objectives.precision import activations

ROUNDS = 5
"""The ways take so many turns, and the median of what they are worth against each other counts: what disturbs
one turn does not decide."""

SECONDS = 0.1
"""Of one way in one turn."""

WARM_UP_STEPS = 2

LEAST_GAIN = {"cpu": 1.1, "cuda": 1.5}
"""How much faster fused must be, by kind of device. A trial alone is the reference: a small gain is not worth
rows that wait for each other, and what a short measurement finds on a CPU lies some per cent above what whole
epochs gain."""

MEASURED = frozenset({"cuda"})
"""Types of device on which the backends of convolutions are measured. On a CPU they are the usual ones:
measuring gained 1 to 5 % of whole steps for images of 8×8 and nothing for larger ones, no more than noise,
and the last bits of a curve would differ from one experiment to the next."""

SMALLEST_BATCH = 32
"""Batches up to this are of one kind."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Training images per second of all trials together, and what a trial takes."""

    fused: float
    """0 where the trial can't be fused."""
    alone: float
    gain: float
    """Fused over alone, the median over the turns; 0 where the trial can't be fused."""
    bytes_per_slot: int
    """As `SlotState.bytes_per_slot`; the activations of a step's images come on top."""
    reason: str | None
    """Why trials had better train alone; None if fused."""
    slots: int | None = None
    """More than these had no memory; None: all had."""
    tried: int = 1
    """Slots that were filled."""
    rows: int | None = None
    """Likewise of rows."""
    convolutions: Mapping[str, str] = field(default_factory=dict)
    """Name in the model → the backend of this convolution, where trials are fused in stacked form."""


def key_of(config: TrialConfig, data: SearchData, device: torch.device) -> ProgramKey:
    """What a trial's way is chosen for."""
    size = effective_batch_size(config, len(data.training_indices))
    batch = SMALLEST_BATCH
    while batch < min(size, MOST_IMAGES):
        batch *= 2
    program = json.dumps(architecture(config, data.input_shape, data.classes))
    return ProgramKey(program, batch, kind_of_device(device))


def choose(
    task: Task,
    config: TrialConfig,
    data: SearchData,
    sizes: Sizes,
    choices: Choices,
    *,
    threads: int | None = 1,
    convolutions: Sequence[str] | None = None,
) -> ProgramChoice:
    """How trials like this one train: as was chosen before, else as a short measurement says.

    `convolutions`: as `choose_convolutions` gives them.

    Raises `TrialError` where the trial would, and `ChoicesError`.
    """
    key = key_of(config, data, data.images.device)
    found = _asked(lambda: choices.get(key))
    if found is not None:
        return found
    seen = speed(task, config, data, sizes, threads=threads, convolutions=convolutions)
    made = ProgramChoice(seen.reason is None, seen.reason, seen.fused, seen.alone, seen.slots, seen.rows)
    return told(choices, key, made)


def choose_convolutions(
    task: Task,
    config: TrialConfig,
    data: SearchData,
    sizes: Sizes,
    choices: Choices,
    *,
    threads: int | None = 1,
) -> tuple[str, ...] | None:
    """The backends of the convolutions of a trial's stacked program, in the order in which they run: as they
    were chosen before, else as short measurements say. None: the usual ones, for nothing is measured here.

    In the caller's `reproducible` settings. Raises `ChoicesError`, also where what was chosen isn't here.
    """
    device = data.images.device
    if device.type not in MEASURED:
        return None
    blank = template(config, data.input_shape, data.classes, task)
    shapes = list(shapes_of(blank, data.input_shape).values())
    dtype, clock = activations(task.precision), _clock(device, threads)

    def measured(sizes: Sizes) -> tuple[str, ...]:
        setting = setting_of(device, sizes, dtype, task.precision)
        return tuple(fastest(shape, setting, device, clock) for shape in shapes)

    key = ProgramKey(
        OF_CONVOLUTIONS + key_of(config, data, device).program, ANY_BATCH, kind_of_device(device)
    )
    held = _asked(lambda: choices.get(key))
    if held is None:
        found, _ = fitting(measured, sizes, fewer)
        held = told(choices, key, ProgramChoice(fused=True, convolutions=found))
    names = held.convolutions or ()
    if not _possible(names, shapes, setting_of(device, sizes, dtype, task.precision)):
        raise ChoicesError(f"convolutions were to be computed by {', '.join(names)}: not possible here")
    return names


def _possible(names: Sequence[str], shapes: Sequence[Shape], setting: Setting) -> bool:
    """Whether each backend exists here and takes its convolution."""
    return len(names) == len(shapes) and all(
        name in CONVOLUTIONS and CONVOLUTIONS[name].offered(shape, setting)
        for name, shape in zip(names, shapes, strict=True)
    )


def told(choices: Choices, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
    """Put a choice; returns what holds. Raises `ChoicesError` whatever went wrong."""
    held = _asked(lambda: choices.put(key, choice))
    assert held is not None, "what was put is there"
    return held


def speed_on(task: Task, config: TrialConfig, device: str = "auto", *, threads: int | None = 1) -> Speed:
    """`speed` on a device, with the sizes that an engine has there; for plans. Raises `ObjectiveError`."""
    chosen = prepare(device)
    with reproducible(threads, task.precision):
        data, sizes = load(task.data, 0, chosen), usual_sizes(chosen.type)
        model = build(config.model, data.input_shape, data.classes, 0, task.allow_imports)
        backends = None
        if fusing(model, data.input_shape).form == "stacked":
            backends = choose_convolutions(task, config, data, sizes, ChoicesInMemory(), threads=threads)
        return speed(task, config, data, sizes, threads=threads, convolutions=backends)


def speed(
    task: Task,
    config: TrialConfig,
    data: SearchData,
    sizes: Sizes,
    *,
    seconds: float = SECONDS,
    threads: int | None = 1,
    convolutions: Sequence[str] | None = None,
) -> Speed:
    """Try as many trials like this one as there are slots fused, and one alone, for about so many seconds
    a turn; in the caller's `reproducible` settings, with so many `threads`.

    Raises `TrialError` where the trial would.
    """
    config = _affordable(config, data)
    device = data.images.device
    model = build(config.model, data.input_shape, data.classes, 0, task.allow_imports)
    found = fusing(model, data.input_shape)
    reason = _with(why_not(config, device) or found.reason, graphed.why_not(config, device))
    clock = _clock(device, threads)
    with seeded(0, device), closing(_alone_steps(task, config, data)) as alone_steps:
        if reason:
            rates = [_rate(alone_steps, seconds, clock) for _ in range(ROUNDS)]
            return Speed(0.0, statistics.median(rates), 0.0, 0, reason)
        generic = found.form == "vmapped"
        pool, fits = fitting(
            lambda s: _pool(task, config, data, s, generic=generic, convolutions=convolutions), sizes, fewer
        )
        fused_steps = _fused_steps(pool)
        pairs = [
            (_rate(fused_steps, seconds, clock), _rate(alone_steps, seconds, clock)) for _ in range(ROUNDS)
        ]
    fused, alone = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    gain = statistics.median(one / other for one, other in pairs)
    least = LEAST_GAIN[device.type]
    return Speed(
        fused=fused,
        alone=alone,
        gain=gain,
        bytes_per_slot=pool.program.state.bytes_per_slot,
        reason=_with(
            None if gain >= least else f"fusing gains {gain:.2f}×, and pays from {least:g}× on",
            pool.why_unrecorded,
        ),
        slots=fits.slots if fits.slots < sizes.slots else None,
        rows=fits.rows if fits.rows < sizes.rows else None,
        tried=fits.slots,
        convolutions=pool.program.convolutions,
    )


def _with(reason: str | None, unrecorded: str | None) -> str | None:
    """Why trials train alone, with why steps are slower than they might be on a GPU, if that is so."""
    return f"{reason} (steps are not recorded: {unrecorded})" if reason and unrecorded else reason


def _asked(question: Callable[[], ProgramChoice | None]) -> ProgramChoice | None:
    try:
        return question()
    except ChoicesError:
        raise
    except Exception as error:
        raise ChoicesError(f"how trials train can't be looked up: {error}") from error


def _affordable(config: TrialConfig, data: SearchData) -> TrialConfig:
    """The same with a batch that is not too large to be tried often."""
    config = replace(config, epochs=1_000_000)
    images = len(data.training_indices)
    if effective_batch_size(config, images) <= MOST_IMAGES:
        return config
    full = OPTIMIZERS[config.optimizer.name].full_batch
    # A last batch of a single image is nothing for batch normalisation.
    size = MOST_IMAGES - 1 if images % MOST_IMAGES == 1 else MOST_IMAGES
    return replace(config, batch_size=size, optimizer=Choice("sgd") if full else config.optimizer)


def _pool(
    task: Task,
    config: TrialConfig,
    data: SearchData,
    sizes: Sizes,
    *,
    generic: bool,
    convolutions: Sequence[str] | None,
) -> Pool:
    """A pool full of such trials that has made its first steps."""
    blank = template(config, data.input_shape, data.classes, task)
    program = Program(
        blank,
        data.input_shape,
        sizes.slots,
        data.images.device,
        generic=generic,
        precision=task.precision,
        convolutions=convolutions,
    )
    pool = Pool(program, data.images, sizes.rows, sizes.images_per_row)
    _fill(pool, config, data, task)
    for _ in range(WARM_UP_STEPS):
        _step(pool)
    return pool


def _fill(pool: Pool, config: TrialConfig, data: SearchData, task: Task) -> None:
    for slot in pool.free:
        seed = derive_seed(0, "init")
        model = build(config.model, data.input_shape, data.classes, seed, task.allow_imports)
        start = TrialStart(trial_id=slot, config=config, seed=slot, split_seed=0)
        pool.admit(
            member(start, slot, data, model=model, program=pool.program, allow_imports=task.allow_imports)
        )


def _fused_steps(pool: Pool) -> Iterator[int]:
    """The images of each step of a pool, for ever."""
    while True:
        before = pool.images
        _step(pool)
        yield pool.images - before


def _alone_steps(task: Task, config: TrialConfig, data: SearchData) -> Generator[int, None, None]:
    """The images of each step of one trial, for ever, after the first few: they choose kernels."""
    training = graphed.training_for(config, 0, data, task.allow_imports, precision=task.precision)
    left_out = WARM_UP_STEPS
    for epoch in itertools.count(1):
        with closing(training.steps(epoch)) as steps:
            for step in steps:
                if left_out:
                    left_out -= 1
                else:
                    yield step.images


def _rate(steps: Iterator[int], seconds: float, clock: Callable[[], float]) -> float:
    """Images per second of at least one step, until so many seconds have passed."""
    images, started = 0, clock()
    until = time.perf_counter() + seconds
    while not images or time.perf_counter() < until:
        images += next(steps)
    return images / max(clock() - started, 1e-9)


def _clock(device: torch.device, threads: int | None) -> Callable[[], float]:
    """Seconds: of this thread where it does all the work, for others may run beside it; else of the clock."""
    if device.type == "cuda":
        return lambda: _when_done(device)
    return time.thread_time if threads == 1 else time.perf_counter


def _when_done(device: torch.device) -> float:
    """The time when all steps so far are done."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _step(pool: Pool) -> None:
    """A step after which every trial goes on, whatever its numbers are: this is about time."""
    for item in pool.step():
        if not isinstance(item, Member):
            raise item.error
