"""Where and when running trials are saved, and what a full disk means: a warning, never the trial's end."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.trials.claims import Claim
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints of a trial, unless asked for otherwise: what a crash may cost it."""


def checkpoint_folder(experiment: ExperimentRecord) -> Path:
    """Where interrupted trials of an experiment are kept on this machine.

    The name alone would not do: the same one in another database is another experiment.
    """
    from storage.embedded import default_directory

    birth = hashlib.sha256(f"{experiment.id} {experiment.created_at.isoformat()}".encode()).hexdigest()[:12]
    return default_directory().parent / "checkpoints" / f"{experiment.name}-{birth}"


class Saver:
    """Saves trials at their epochs' ends, each at most every `seconds`. One thread."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._saved_at: dict[int, float] = {}
        self._failing = False

    def begin(self, claim: Claim) -> None:
        """A trial begins here, or goes on."""
        self._saved_at[claim.lease.token] = self._clock()

    def end(self, claim: Claim) -> None:
        """A trial left."""
        self._saved_at.pop(claim.lease.token, None)

    def is_due(self, claim: Claim) -> bool:
        """Whether a trial that goes on should be saved now."""
        return self._clock() - self._saved_at[claim.lease.token] >= self._seconds

    def save(self, claim: Claim, epoch: int, write: Callable[[Path], None]) -> bool:
        """Save a trial at the end of `epoch`; `write(path)` is its engine's. False if it can't be written.

        Then the checkpoint before is kept, and the trial goes on: only a crash would cost more.
        """
        from objectives.checkpoint_files import CheckpointError

        try:
            claim.folder.save(write, fingerprint=claim.fingerprint, epoch=epoch, attempt=claim.lease.attempt)
        except (OSError, CheckpointError) as error:
            if not self._failing:
                logger.warning(
                    "checkpoints can't be written to %s, trials go on without: %s", claim.folder.path, error
                )
            self._failing = True
            self._saved_at[claim.lease.token] = self._clock()
            return False
        self._failing = False
        self._saved_at[claim.lease.token] = self._clock()
        return True
