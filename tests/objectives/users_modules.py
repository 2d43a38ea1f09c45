"""Trials of a user's own module or loss in the plain engine."""

from __future__ import annotations

import dataclasses

from objectives.base import Choice, Task, TrialConfig, TrialFailure
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import GOOD, TASK, trial

USERS_TASK = dataclasses.replace(TASK, allow_imports=("users_own",))
USERS_MODEL = dataclasses.replace(GOOD, model=Choice("users_own:model"), batch_size=32)


def only_failure(config: TrialConfig, task: Task = USERS_TASK) -> TrialFailure:
    engine = PlainEngine(task, "cpu")
    engine.admit(trial(1, config))
    (failure,) = engine.advance()
    assert isinstance(failure, TrialFailure)
    return failure
