"""Models by `torch.func`: the plain numbers, and for each row the same bits whatever is beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from objectives.devices import reproducible
from objectives.fused.layout import restored
from objectives.fused.vmapped import scores_of

CHANNELS = 7


class Own(nn.Module):
    """Convolutions called in all the ways that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", padding_mode="circular")
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)
        self.fourth = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        x = x + torch.conv2d(x, self.fourth.weight, bias=self.fourth.bias, padding="same")
        x = torch.stack(
            [nn.functional.conv2d(one, weight=self.third.weight, bias=self.third.bias, stride=2) for one in x]
        )
        return self.head(x.relu().mean((2, 3)))


def as_in_slots(parameters: Sequence[Tensor]) -> Tensor:
    """One parameter of many models, laid out as `Layout` does it: kernels channels last."""
    stacked = torch.stack([parameter.detach() for parameter in parameters])
    return restored(stacked.movedim(2, -1).contiguous(), leading=1) if stacked.ndim == 5 else stacked


def gradients(rows: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores and gradients of the first of so many models, each with images of its own."""
    models = [Own() for _ in range(rows)]
    chance = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
    for model, random in zip(models, chance, strict=True):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3, generator=random)
    names = [name for name, _ in models[0].named_parameters()]
    weights = {name: as_in_slots([m.get_parameter(name) for m in models]).requires_grad_() for name in names}
    images = torch.stack([torch.randn(16, 1, 8, 8, generator=random) for random in chance])
    scores = scores_of(models[0], weights, {}, images)
    slopes = torch.stack([torch.randn(16, 3, generator=random) for random in chance])
    found = torch.autograd.grad(scores, [weights[name] for name in names], slopes)
    return scores[0].detach(), {name: slope[0] for name, slope in zip(names, found, strict=True)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_row_has_the_same_bits_whatever_is_beside_it(seed: int) -> None:
    with reproducible(1):
        scores, slopes = gradients(2, seed)
        for rows in (3, 5, 8, 17):
            others, found = gradients(rows, seed)
            assert torch.equal(others, scores)
            assert all(torch.equal(found[name], slopes[name]) for name in slopes), rows


def test_they_are_the_plain_scores_and_gradients() -> None:
    model = Own().double()
    images = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights = {name: torch.stack([p.detach(), p.detach()]) for name, p in model.named_parameters()}
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    scores = scores_of(model, weights, {}, images)
    found = torch.autograd.grad(scores.square().sum(), list(weights.values()))
    for row in range(2):
        plain = model(images[row])
        torch.testing.assert_close(scores[row], plain)
        expected = torch.autograd.grad(plain.square().sum(), list(model.parameters()))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[row], theirs)
