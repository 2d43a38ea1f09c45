"""A brake on what other processes do: each waits once it has done so much, until the test lets it go on.

For tests that stop, kill or cut off a run in its midst: however late the signal comes and however fast the
machine is, there is work left, and none of it is begun meanwhile.
"""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "TEST_HOLD"
"""Environment variable: the file of a `Hold`."""
LOOK_SECONDS, CREEP_SECONDS = 0.01, 0.5


@dataclass(frozen=True)
class Hold:
    """The test's side. Processes that are to heed it have `environment()`."""

    path: Path

    def environment(self) -> dict[str, str]:
        """What a process is told."""
        return {VARIABLE: str(self.path)}

    def at(self, done: int) -> None:
        """From now on who has done so much waits; who waits and has done less goes on."""
        aside = self.path.with_suffix(".aside")
        aside.write_text(str(done), encoding="utf-8")
        aside.replace(self.path)

    def creep(self, over: Callable[[], bool]) -> None:
        """Let one more be done, and one more, until `over`: who was told to end hears of it meanwhile."""
        done = int(self.path.read_text(encoding="utf-8"))
        pause = threading.Event()
        while not over():
            done += 1
            self.at(done)
            pause.wait(CREEP_SECONDS)

    def release(self) -> None:
        """Nobody waits any more."""
        self.path.unlink(missing_ok=True)


def heed(done: int) -> None:
    """Wait if who has done so much is to. Signals are handled meanwhile."""
    said = os.environ.get(VARIABLE)
    while said and done >= _limit(Path(said)):
        # Not `time.sleep`, which under a moved clock at times fails with EINVAL.
        select.select([], [], [], LOOK_SECONDS)


def _limit(path: Path) -> float:
    try:
        return int(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return math.inf
