"""What users bring to the fused engine: trained fused where that is sound, alone where it isn't."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from objectives.base import Choice, TrialConfig, TrialFailure
from objectives.models import Dropout
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import GOOD, advance_to_end_of, run, trial
from tests.objectives.fused.small_engines import OWN, assert_like_plain, small_engine


class Scores(nn.Module):
    """A user's model with code of its own between its layers."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, *, hidden: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], hidden, 3)
        self.head = nn.Linear(hidden, classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.conv(images))
        scores: Tensor = self.head(maps.mean(dim=(2, 3))) * self.scale
        return scores


class WithDropout(Scores):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.2, self.training))


class Mixing(Scores):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(dim=0))


class Counting(Scores):
    seen: Tensor

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(input_shape, classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + 1
        return super().forward(images)


class Branching(Scores):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


def layers(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A user's model of common layers only."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, classes),
    )


def frozen(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    model = layers(input_shape, classes)
    next(model.parameters()).requires_grad_(False)
    return model


def dropping(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """With our dropout, two of them, which a user may take as well."""
    pixels = math.prod(input_shape)
    return nn.Sequential(
        nn.Flatten(), Dropout(0.2), nn.Linear(pixels, 20), nn.ReLU(), Dropout(0.5), nn.Linear(20, classes)
    )


def dropping_maps(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), Dropout(0.2), nn.Flatten(), nn.Linear(144, classes))


def dropping_twice(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    dropout, pixels = Dropout(0.5), math.prod(input_shape)
    return nn.Sequential(nn.Flatten(), dropout, nn.Linear(pixels, 9), dropout, nn.Linear(9, classes))


def noisy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Draws for every score, and once for the batch."""
    noisy = logits + 3 * torch.rand_like(logits)
    return nn.functional.cross_entropy(noisy, labels, reduction="none") * (0.5 + torch.rand(()))


def failing_loss(logits: Tensor, labels: Tensor) -> Tensor:
    raise RuntimeError("no loss today")


@pytest.fixture
def users_own() -> Iterator[ModuleType]:
    module = ModuleType("users_own")
    for thing in (
        *(Scores, WithDropout, Mixing, Counting, Branching),
        *(layers, frozen, noisy_loss, failing_loss, dropping, dropping_maps, dropping_twice),
    ):
        setattr(module, thing.__name__, thing)
    sys.modules["users_own"] = module
    yield module
    del sys.modules["users_own"]


def with_model(name: str, **changes: object) -> TrialConfig:
    # Not Adam: where a bias comes before a normalisation its gradient is nothing but rounding, and Adam
    # makes steps of full size of it.
    values = {"optimizer": Choice("momentum"), "learning_rate": 0.02, "epochs": 2}
    changes = {"model": Choice(f"users_own:{name}")} | values | changes
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Scores", "layers", "dropping"])
def test_users_models_train_fused_and_like_the_plain_trainer(users_own: ModuleType, name: str) -> None:
    starts = [trial(n, with_model(name, batch_size=16 + 8 * n)) for n in range(5)]
    engine = small_engine()
    engine.admit(starts[0])
    advance_to_end_of(engine, 0)
    assert engine.why_alone(0) is None
    engine.retire(0)
    assert_like_plain(engine, starts)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("WithDropout", "random"),
        ("dropping_maps", "random"),
        ("dropping_twice", "random"),
        ("Mixing", "others of its batch"),
        ("Counting", "buffers"),
        ("Branching", "torch.func can't run"),
        ("frozen", "frozen"),
    ],
)
def test_what_can_not_be_fused_trains_alone_and_says_why(users_own: ModuleType, name: str, why: str) -> None:
    start = trial(1, with_model(name))
    engine = small_engine()
    engine.admit(start)
    advance_to_end_of(engine, 1)
    assert why in (engine.why_alone(1) or "")
    assert run(small_engine(), [trial(2), start])[1] == run(PlainEngine(OWN, "cpu"), [start])[1]


def test_users_losses_see_the_random_numbers_that_they_see_alone(users_own: ModuleType) -> None:
    noisy = with_model("Scores", loss=Choice("users_own:noisy_loss"))
    sizes = (16, 40, None)  # all images at once are more than a step has room for
    starts = [trial(n, dataclasses.replace(noisy, batch_size=size)) for n, size in enumerate(sizes)]
    assert_like_plain(small_engine(), starts)


def test_a_raising_loss_is_one_trials_failure(users_own: ModuleType) -> None:
    failing = trial(9, dataclasses.replace(GOOD, loss=Choice("users_own:failing_loss")))
    found = run(small_engine(), [trial(1), failing, trial(2)])
    (failure,) = found[9]
    assert isinstance(failure, TrialFailure)
    assert "no loss today" in failure.reason
    assert not failure.retryable
    assert {n: found[n] for n in (1, 2)} == run(small_engine(), [trial(1), trial(2)])
