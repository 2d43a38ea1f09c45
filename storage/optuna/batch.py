"""What a thread does in one go: what it has read, and what it will write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from storage.optuna.queue import TrialWrites, Writes

UNUSED = "shoal:unused"
"""System attribute of a trial that was made ahead and that nobody asked for."""


class TrialsRefused(Exception):  # noqa: N818 - an event that callers handle
    """Some trials of a batch were finished or deleted by others; everything of the others is stored."""

    def __init__(self, errors: Mapping[int, UpdateFinishedTrialError | KeyError]) -> None:
        super().__init__("; ".join(str(error) for error in errors.values()))
        self.errors = errors
        """The trial's key → what a write of it alone would have raised."""


@dataclass(slots=True)
class Batch:
    """A thread's batch."""

    writes: Writes
    """Held until the end."""
    new: dict[int, int]
    """Study → how many trials will be asked for."""
    made: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Study → trials that were made and not asked for yet."""
    read: set[int] = field(default_factory=set)
    """Studies that were read."""
    attributes: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    """(study, kind) → attributes that were read."""

    @staticmethod
    def failed() -> TrialWrites:
        """The end of a trial that nobody asked for."""
        now = datetime.now()  # noqa: DTZ005 (naive local time, as Optuna's)
        return TrialWrites(system_attrs={UNUSED: "true"}, state=TrialState.FAIL, moment=now)
