"""Writes that wait: several layers of them as one."""

from __future__ import annotations

import copy

from storage.optuna.queue import TrialWrites, merged


def test_later_layers_are_on_top_and_all_stay_as_they_are() -> None:
    layers = [
        {1: TrialWrites(reports={1: 0.1}), 2: TrialWrites(user_attrs={"a": "1"})},
        {1: TrialWrites(reports={1: 0.2, 2: 0.3})},
        {1: TrialWrites(values=(0.5,)), 3: TrialWrites(reports={7: 1.0})},
    ]
    before = copy.deepcopy(layers)
    found = merged(layers)
    assert found == {
        1: TrialWrites(reports={1: 0.2, 2: 0.3}, values=(0.5,)),
        2: TrialWrites(user_attrs={"a": "1"}),
        3: TrialWrites(reports={7: 1.0}),
    }
    assert layers == before


def test_what_is_given_up_but_for_the_ending_is_its_own() -> None:
    writes = TrialWrites(reports={1: 0.1}, values=(0.5,))
    rest = writes.without_ending()
    assert rest == TrialWrites(reports={1: 0.1})
    rest.add(TrialWrites(reports={2: 0.2}, user_attrs={"a": "1"}))
    assert writes == TrialWrites(reports={1: 0.1}, values=(0.5,))
