"""Writes that wait to be sent, trial by trial, and how a trial looks once they are stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from storage.optuna.stored import evolved


@dataclass(slots=True)
class TrialWrites:
    """What waits to be written of one trial."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    """Internal values. The first of a name stays, in the tables as well."""
    user_attrs: dict[str, str] = field(default_factory=dict)
    """JSON."""
    system_attrs: dict[str, str] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    values: tuple[float, ...] | None = None
    state: TrialState | None = None
    moment: datetime | None = None
    """Of the change of state, naive local time: the client's until the database has given its own."""

    def add(self, later: TrialWrites) -> None:
        """Put later writes on top of these."""
        for name, drawn in later.params.items():
            self.params.setdefault(name, drawn)
        self.user_attrs.update(later.user_attrs)
        self.system_attrs.update(later.system_attrs)
        self.reports.update(later.reports)
        if later.values is not None:
            self.values = later.values
        if later.state is not None:
            self.state, self.moment = later.state, later.moment

    def without_ending(self) -> TrialWrites:
        """The same but for the state and the values that go with it."""
        return TrialWrites(
            dict(self.params), dict(self.user_attrs), dict(self.system_attrs), dict(self.reports)
        )

    def laid_over(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as it will be; the one given stays as it is."""
        changes: dict[str, Any] = {}
        if self.params:
            new = {name: drawn for name, drawn in self.params.items() if name not in trial._params}
            changes["_params"] = trial._params | {
                name: distribution.to_external_repr(value) for name, (value, distribution) in new.items()
            }
            changes["_distributions"] = trial._distributions | {
                name: distribution for name, (_, distribution) in new.items()
            }
        if self.user_attrs:
            changes["_user_attrs"] = trial._user_attrs | _loaded(self.user_attrs)
        if self.system_attrs:
            changes["_system_attrs"] = trial._system_attrs | _loaded(self.system_attrs)
        if self.reports:
            changes["intermediate_values"] = trial.intermediate_values | self.reports
        if self.values is not None:
            changes["_values"] = list(self.values)
        if self.state is not None:
            changes |= self._ending()
        return evolved(trial, **changes) if changes else trial

    def _ending(self) -> dict[str, Any]:
        if self.state == TrialState.RUNNING:
            return {"state": self.state, "_datetime_start": self.moment}
        if self.state is not None and self.state.is_finished():
            return {"state": self.state, "datetime_complete": self.moment}
        return {"state": self.state}


Writes = dict[int, TrialWrites]
"""Trial → what waits to be written of it."""


def merged(layers: Sequence[Writes]) -> Writes:
    """Writes of several layers as one, later layers on top; they stay as they are.

    What only one layer has of a trial is shared with it, so nobody may add to that from now on.
    """
    result: Writes = {}
    for layer in layers:
        for trial_id, writes in layer.items():
            before = result.get(trial_id)
            if before is None:
                result[trial_id] = writes
                continue
            result[trial_id] = both = TrialWrites()
            both.add(before)
            both.add(writes)
    return result


def _loaded(attributes: dict[str, str]) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in attributes.items()}
