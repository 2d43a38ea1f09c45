"""What trials do in the lab: a curve whose epochs take their time, each noted in a file as it ends.

The note says who trained it, on which machine, and when; so what was trained twice, or in vain, can be
counted even where nobody heard of it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from objectives.base import Scalar
from tests.faults.objectives import pause, value_at

LOG_VARIABLE = "MULTIHOST_LOG"
"""Environment variable: the file of notes, which all machines share."""


def trial(config: Mapping[str, Scalar], *, seed: int, epochs: int) -> Iterator[float]:
    """The objective; `x` in [0, 1]. An epoch takes what `tests.faults.objectives.pause` takes."""
    for epoch in range(1, epochs + 1):
        pause()
        note = f"{platform.node()} {os.getpid()} {seed} {epoch} {time.time():.3f}\n"
        with Path(os.environ[LOG_VARIABLE]).open("a", encoding="utf-8") as log:
            log.write(note)
        yield value_at(float(config["x"]), seed, epoch)
