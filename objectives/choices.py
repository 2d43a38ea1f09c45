"""Which way the trials of a program train, decided once and remembered by whoever runs the engine.

A fused trial and the same trial alone differ in their last bits, and so do two ways to compute a convolution.
So that a trial's curve never depends on a clock, what was measured first holds: for all workers, for a trial
that is tried again, and for a run that is resumed. The engine asks and tells through `Choices` and knows
nothing of where they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

CONVOLUTIONS = "convolutions "
"""Before a program: what is chosen is how its convolutions are computed."""

ANY_BATCH = 1
"""In the place of a batch: all trials of a program share its convolutions, whatever their batches are."""


class ChoicesError(Exception):
    """What was chosen can't be read or stored: no trial may begin, as it might train the wrong way."""


@dataclass(frozen=True, slots=True)
class ProgramKey:
    """What a choice is for."""

    program: str
    """The architecture, as JSON: equal for trials that can share a program. After `CONVOLUTIONS`: for how its
    convolutions are computed."""
    batch: int
    """Images of a batch, rounded up: small batches gain more from fusing than large ones."""
    device: str
    """The kind of device, such as a processor's or a GPU's name."""


@dataclass(frozen=True, slots=True)
class ProgramChoice:
    """How such trials train, and what is known of it."""

    fused: bool
    reason: str | None = None
    """Why alone, for a user to read; None if fused."""
    fused_rate: float | None = None
    """Training images per second of all slots together, when it was decided; None: not measured."""
    alone_rate: float | None = None
    """Likewise of one trial after the other."""
    slots: int | None = None
    """More slots than these have found no memory; None: there was enough so far."""
    rows: int | None = None
    """Likewise of rows of a step."""
    convolutions: tuple[str, ...] | None = None
    """The backend of each of a program's convolutions, in the order in which they run, and no more is said;
    None: it is said which way trials train."""


class Choices(Protocol):
    """Remembers the choices of one experiment. Each method raises `ChoicesError`."""

    def get(self, key: ProgramKey) -> ProgramChoice | None:
        """What holds; None if nobody has chosen yet."""

    def put(self, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
        """Propose a choice; returns what holds from now on.

        The first that was put decides the way and keeps its rates; of slots and rows the fewest hold.
        """


class ChoicesInMemory:
    """The `Choices` of a process that shares them with no other."""

    def __init__(self) -> None:
        self._choices: dict[ProgramKey, ProgramChoice] = {}

    def get(self, key: ProgramKey) -> ProgramChoice | None:
        """As `Choices.get`."""
        return self._choices.get(key)

    def put(self, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
        """As `Choices.put`."""
        before = self._choices.get(key, choice)
        held = replace(
            before, slots=_fewest(before.slots, choice.slots), rows=_fewest(before.rows, choice.rows)
        )
        self._choices[key] = held
        return held


class AlwaysFused(ChoicesInMemory):
    """Trials are fused without asking which way is faster; how convolutions are computed is measured."""

    def get(self, key: ProgramKey) -> ProgramChoice | None:
        """As `Choices.get`."""
        held = super().get(key)
        return held if held or key.program.startswith(CONVOLUTIONS) else ProgramChoice(fused=True)


def _fewest(one: int | None, other: int | None) -> int | None:
    given = [number for number in (one, other) if number is not None]
    return min(given, default=None)
