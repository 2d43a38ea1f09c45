"""A study whose trials samplers are to see in other words than they are stored in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import TypeAlias

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

Telling: TypeAlias = Callable[[list[FrozenTrial]], list[FrozenTrial]]
"""From the trials of a study to what is shown of them."""


class Shown(Study):
    """A study, which may be such a one itself, with its trials told otherwise; all else is the study's."""

    def __init__(self, study: Study, telling: Telling) -> None:
        self.__dict__.update(study.__dict__)
        self._told_of = study
        self._telling = telling

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        told = self._telling(self._told_of._get_trials(deepcopy=False, use_cache=use_cache))
        # Chosen last: a state may be told otherwise as well.
        found = [trial for trial in told if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found
