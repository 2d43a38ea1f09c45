"""A penalty's gradient in closed form is that of the penalty itself."""

from __future__ import annotations

import pytest
import torch

from objectives.base import Choice
from objectives.fused.regularise import FACTORS, add_penalty
from objectives.regularisers import REGULARISERS, no_penalty, penalty

OPTIONS = {"elastic_net": {"l1_ratio": 0.2}}


def test_every_penalty_has_a_closed_form() -> None:
    assert set(FACTORS) == {name for name, entry in REGULARISERS.items() if entry.penalty != no_penalty}


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "options"])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("name", FACTORS)
def test_values_and_gradients_are_those_of_autograd(
    name: str, closed: bool, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice(name, OPTIONS.get(name, {}) if given else {})
    weights = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    expected = penalty(choice, 0.3, [weights])
    (slope,) = torch.autograd.grad(expected, weights)
    if not closed:
        monkeypatch.setattr("objectives.fused.regularise.FACTORS", {})
    gradient = torch.ones(4, dtype=torch.float64)
    value = add_penalty(choice, 0.3, weights.detach(), gradient)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, 1 + slope)
