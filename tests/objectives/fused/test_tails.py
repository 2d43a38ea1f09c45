"""What is computed with a convolution is what follows it in the model, and nothing that is like it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from objectives.fused.convolutions import shapes_of
from objectives.fused.tails import by_operations, tails
from objectives.models import cnn, resnet


def test_the_built_in_models() -> None:
    model = cnn((3, 32, 32), 10)
    assert list(tails(model).values()) == [2, 2, 1]
    assert [shape.tail for shape in shapes_of(model, (3, 32, 32)).values()] == [2, 2, 1]
    assert tails(cnn((3, 32, 32), 10, batch_norm=True)) == {}
    assert tails(cnn((3, 32, 32), 10, activation="gelu")) == {}
    assert tails(resnet((3, 32, 32), 10)) == {}


@pytest.mark.parametrize(
    ("after", "tail"),
    [
        ([], 0),
        ([nn.ReLU()], 1),
        ([nn.ReLU(), nn.MaxPool2d(2)], 2),
        ([nn.ReLU(), nn.MaxPool2d((2, 2), (2, 2))], 2),
        ([nn.ReLU(), nn.MaxPool2d(3)], 1),
        ([nn.ReLU(), nn.MaxPool2d(2, 1)], 1),
        ([nn.ReLU(), nn.MaxPool2d(2, padding=1)], 1),
        ([nn.ReLU(), nn.MaxPool2d(2, dilation=2)], 1),
        ([nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)], 1),
        ([nn.ReLU(), nn.AvgPool2d(2)], 1),
        ([nn.MaxPool2d(2), nn.ReLU()], 0),
        ([nn.ReLU6(), nn.MaxPool2d(2)], 0),
    ],
)
def test_a_tail_is_a_relu_and_the_plainest_pool(after: list[nn.Module], tail: int) -> None:
    assert tails(nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1), *after))).get("0.0", 0) == tail
    y = torch.randn(2, 1, 7, 6)
    expected = nn.Sequential(*after[:tail])(y)
    assert torch.equal(by_operations(y, tail), expected)
