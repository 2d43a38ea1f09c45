"""What `run` makes of how an experiment ended."""

from __future__ import annotations

import pytest

from search.commands.running import all_failed
from search.compare.analysis import analyse
from search.compare.base import State
from tests.contracts.comparison_values import comparison, study, trial


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["failed", "failed"], True),
        (["failed", "complete"], False),
        (["pruned", "failed"], False),
        (["waiting"], False),
        ([], False),
    ],
)
def test_an_experiment_of_which_every_trial_failed_has_failed(states: list[State], expected: bool) -> None:
    trials = [trial(n, 0.5 if state == "complete" else None, state=state) for n, state in enumerate(states)]
    assert all_failed(analyse(comparison([study("random", 0, trials)]))) is expected
