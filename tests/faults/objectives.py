"""Trials for fault tests: a function whose curve is known, and what can go wrong while it runs.

What a trial does is said by its value of `kind`: see `KINDS`. What it did lies in the folder that
the environment names, so that tests wait for what has happened, not for time to pass.
"""

from __future__ import annotations

import math
import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from objectives.base import Scalar

FOLDER_VARIABLE = "FAULTS_FOLDER"
"""Environment variable: the folder in which trials leave traces."""
PACE_VARIABLE = "FAULTS_PACE"
"""Environment variable: seconds that an epoch takes."""

LOG, REACHED, OPEN = "epochs.log", "reached", "open"
"""Epochs that were trained, one line each; with a process's id: its trial waits at the gate; it is open, and
no epoch takes time any more."""
GATE, TROUBLE = 2, 2
"""The epoch at whose beginning a `gated` trial waits, and the one in which other kinds go wrong."""


def value_at(x: float, seed: int, epoch: int) -> float:
    """The curve of a trial: rises towards a height that depends on its value and its seed."""
    noise = random.Random(f"{seed} {epoch}").random()
    return (1.0 - (x - 0.4) ** 2) * (1 - 0.5**epoch) + 0.01 * noise


def trial(config: Mapping[str, Scalar], *, seed: int, epochs: int) -> Iterator[float]:
    """The objective. `x` in [0, 1]; `kind`, a key of `KINDS`."""
    x, kind = float(config["x"]), str(config.get("kind", "steady"))
    for epoch in range(1, epochs + 1):
        pause()
        value = KINDS[kind](epoch, value_at(x, seed, epoch))
        with (folder() / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{kind} {x:.6f} {epoch}\n")
        yield value


def stormy(config: Mapping[str, Scalar], *, seed: int, epochs: int) -> Iterator[float]:
    """As `trial`, but some of the range raises or diverges: what a nemesis runs."""
    x = float(config["x"])
    for epoch in range(1, epochs + 1):
        pause(random.Random(seed + epoch).uniform(0.5, 1.5))
        if x > RAISES_ABOVE and epoch == TROUBLE:
            raise ValueError("too far to the right")
        yield math.nan if x < DIVERGES_BELOW and epoch == TROUBLE else value_at(x, seed, epoch)


RAISES_ABOVE, DIVERGES_BELOW = 0.97, 0.03


def pause(factor: float = 1.0) -> None:
    """What an epoch takes, until the gate is open where there is one.

    Not by `time.sleep`, which under a moved clock at times fails with EINVAL.
    """
    if not (FOLDER_VARIABLE in os.environ and (folder() / OPEN).exists()):
        select.select([], [], [], float(os.environ.get(PACE_VARIABLE, "0")) * factor)


def folder() -> Path:
    """Where traces are left."""
    return Path(os.environ[FOLDER_VARIABLE])


def _steady(_epoch: int, value: float) -> float:
    return value


def _gated(epoch: int, value: float) -> float:
    if epoch == GATE:
        (folder() / f"{REACHED}.{os.getpid()}").touch()
        while not (folder() / OPEN).exists():
            time.sleep(0.01)
    return value


def _kills(_epoch: int, value: float) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def _hangs(epoch: int, value: float) -> float:
    if epoch == TROUBLE:
        time.sleep(3600)
    return value


def _is_nan(epoch: int, value: float) -> float:
    return math.nan if epoch == TROUBLE else value


def _raises(epoch: int, value: float) -> float:
    if epoch == TROUBLE:
        raise ValueError("this trial's data are broken")
    return value


def _eats_memory(epoch: int, value: float) -> float:
    return value + 0 * len(bytearray(2**36)) if epoch == TROUBLE else value


KINDS: dict[str, Callable[[int, float], float]] = {
    "steady": _steady,
    "gated": _gated,
    "kills": _kills,
    "hangs": _hangs,
    "nan": _is_nan,
    "raises": _raises,
    "memory": _eats_memory,
}
"""What a trial does at an epoch, given the value that it would have."""
