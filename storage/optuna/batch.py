"""What a thread does in one go: what it has read, and what it will write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from storage.optuna.queue import TrialWrites, Writes
from storage.optuna.writes import Outcome

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
    keys: dict[str, int] = field(default_factory=dict)
    """Study's name → its key, of those that were looked up together."""
    attributes: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    """(study, kind) → attributes that were read."""

    def hold_param(self, trial_id: int, name: str, drawn: tuple[float, BaseDistribution]) -> TrialWrites:
        """Hold a parameter, of which a pool has thousands; all that is held of its trial."""
        held = self.writes.get(trial_id)
        if held is None:
            held = self.writes[trial_id] = TrialWrites()
        held.params.setdefault(name, drawn)
        return held

    @staticmethod
    def failed() -> TrialWrites:
        """The end of a trial that nobody asked for."""
        now = datetime.now()  # noqa: DTZ005 (naive local time, as Optuna's)
        return TrialWrites(system_attrs={UNUSED: "true"}, state=TrialState.FAIL, moment=now)


def refusal(trial_id: int, outcome: Outcome) -> UpdateFinishedTrialError | KeyError | None:
    """What a write of a trial raises that was finished or deleted by others; None if it is stored."""
    if outcome.before is None:
        return KeyError(f"there is no trial with the key {trial_id}")
    if not outcome.stored:
        return UpdateFinishedTrialError(
            f"The trial with the key {trial_id} has finished and can't be changed."
        )
    return None


def raise_refusal(trial_id: int, outcome: Outcome | None) -> None:
    """Raises that; an `outcome` of None is none yet."""
    error = None if outcome is None else refusal(trial_id, outcome)
    if error is not None:
        raise error
