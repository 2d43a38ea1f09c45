"""Every combination trains, and an epoch of the reference is what it says, divergence included."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import pytest
import torch
from torch import nn

from objectives.base import (
    Choice,
    Task,
    TrialConfig,
    TrialError,
)
from objectives.chance import Epoch
from objectives.datasets import load
from objectives.devices import reproducible
from objectives.losses import LOSSES
from objectives.metrics import worst_metrics
from objectives.models import MODELS
from objectives.optimizers import OPTIMIZERS
from objectives.regularisers import REGULARISERS
from objectives.schedules import SCHEDULES
from objectives.trainer import PlainEngine, train_epoch
from objectives.training import Training
from tests.contracts.engine_contract import (
    DIVERGING,
    GOOD,
    TASK,
    run,
    trial,
    what_counts,
)

CPU = torch.device("cpu")

USERS_TASK = dataclasses.replace(TASK, allow_imports=("users_own",))
USERS_MODEL = dataclasses.replace(GOOD, model=Choice("users_own:model"), batch_size=32)


def first_report(config: TrialConfig, task: Task = TASK, seed: int = 1):
    data = load(task.data, 5, CPU)
    with reproducible(1):
        return what_counts(train_epoch(Training(config, seed, data, task.allow_imports)))


# Every combination trains


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_with_every_optimizer(loss: str, optimizer: str) -> None:
    config = dataclasses.replace(
        GOOD, loss=Choice(loss), optimizer=Choice(optimizer), learning_rate=0.001, class_weights="balanced"
    )
    report = first_report(config)
    assert not report.diverged
    assert report.train_loss is not None
    assert report.validation_loss is not None


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_every_regulariser_trains_with_every_schedule(regulariser: str, schedule: str) -> None:
    config = dataclasses.replace(
        GOOD, regulariser=Choice(regulariser), schedule=Choice(schedule, {"warmup": 1.0}), strength=0.01
    )
    assert not first_report(config).diverged


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(model: str) -> None:
    assert not first_report(dataclasses.replace(GOOD, model=Choice(model))).diverged


# What an epoch is


def test_an_epoch_takes_every_training_image_once_partial_batch_included() -> None:
    data = load(TASK.data, 5, CPU)
    training = Training(GOOD, 1, data)
    assert [step.images for step in training.steps(1)] == [48, 48, 48, 16]
    chosen = torch.sort(
        torch.cat([labels for _, pieces in batches(training) for *_, labels in pieces])
    ).values
    assert torch.equal(chosen, torch.sort(data.labels[data.training_indices]).values)


def batches(training: Training):
    order = training.data.training_indices
    return training._batches(order, Epoch(1, 1, len(order), CPU))


def test_epochs_have_orders_of_their_own() -> None:
    """Weights stand still, without dropout and augmentation: only the order can change a step's loss."""
    plain = Choice("cnn", {"depth": 1, "width": 2})
    still = dataclasses.replace(GOOD, learning_rate=1e-12, augment={}, model=plain)
    training = Training(still, 1, load(TASK.data, 5, CPU))
    first, second = ([float(step.loss) for step in training.steps(epoch)] for epoch in (1, 2))
    assert first != pytest.approx(second, rel=1e-4)
    assert sum(first[:3]) / 3 * 0.9 + first[3] * 0.1 == pytest.approx(
        sum(second[:3]) / 3 * 0.9 + second[3] * 0.1, rel=1e-3
    )


@pytest.mark.parametrize("choice", [{"batch_size": None}, {"optimizer": Choice("gradient_descent")}])
def test_full_batches_are_one_step_per_epoch(choice: dict[str, object]) -> None:
    config = dataclasses.replace(GOOD, **choice)
    assert [step.images for step in Training(config, 1, load(TASK.data, 5, CPU)).steps(1)] == [160]


def test_pieces_of_a_large_batch_add_up_to_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(
        GOOD,
        batch_size=None,
        optimizer=Choice("sgd"),
        augment={},
        class_weights="balanced",
        model=Choice("cnn", {"depth": 2, "width": 4}),
    )
    whole = first_report(config)
    monkeypatch.setattr("objectives.training.FORWARD_IMAGES", 37)
    training = Training(config, 1, load(TASK.data, 5, CPU))
    assert [len(labels) for _, pieces in batches(training) for *_, labels in pieces] == [37, 37, 37, 37, 12]
    pieces = first_report(config)
    assert pieces.train_loss == pytest.approx(whole.train_loss, rel=1e-6)
    assert pieces.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    assert pieces.validation_loss == pytest.approx(whole.validation_loss, rel=1e-5)


def test_batch_statistics_keep_a_large_batch_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.training.FORWARD_IMAGES", 37)
    training = Training(dataclasses.replace(GOOD, batch_size=None), 1, load(TASK.data, 5, CPU))
    assert [len(labels) for _, pieces in batches(training) for *_, labels in pieces] == [160]


def test_gathering_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    together = first_report(GOOD)
    for name in ("GATHERED_ELEMENTS", "AUGMENTED_ELEMENTS"):
        monkeypatch.setattr(f"objectives.training.{name}", 1)
    assert first_report(GOOD) == together


def test_one_step_is_what_torch_does() -> None:
    """Loss, L2 term, gradient norm and update of one full-batch step, written out by hand."""
    config = dataclasses.replace(
        GOOD,
        batch_size=None,
        optimizer=Choice("sgd"),
        schedule=Choice("constant"),
        augment={},
        strength=0.1,
        model=Choice("cnn", {"depth": 1, "width": 2, "dense": 0}),
    )
    data = load(TASK.data, 5, CPU)
    by_hand = Training(config, 1, data).model
    images = (data.images[data.training_indices].float() - data.mean[:, None, None]) / data.std[:, None, None]
    loss = nn.functional.cross_entropy(by_hand(images), data.labels[data.training_indices])
    weights = [parameter for parameter in by_hand.parameters() if parameter.ndim > 1]
    objective = loss + 0.1 / 2 * sum(weight.square().sum() for weight in weights)
    objective.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in by_hand.parameters()]).norm()
    torch.optim.SGD(by_hand.parameters(), lr=config.learning_rate).step()

    trained = Training(config, 1, data)
    report = train_epoch(trained)
    assert report.train_loss == pytest.approx(objective.item(), rel=1e-5)
    assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    assert report.learning_rate == config.learning_rate
    for ours, theirs in zip(trained.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_decoupled_decay_shrinks_weights_by_the_steps_learning_rate() -> None:
    config = dataclasses.replace(GOOD, regulariser=Choice("weight_decay"), batch_size=None, epochs=1)
    config = dataclasses.replace(config, optimizer=Choice("sgd"), schedule=Choice("constant"), augment={})
    plain = Training(dataclasses.replace(config, strength=0.0), 1, load(TASK.data, 5, CPU))
    decayed = Training(dataclasses.replace(config, strength=0.5), 1, load(TASK.data, 5, CPU))
    before = [parameter.detach().clone() for parameter in plain.model.parameters()]
    assert train_epoch(plain).train_loss == train_epoch(decayed).train_loss
    for old, new, shrunk in zip(before, plain.model.parameters(), decayed.model.parameters(), strict=True):
        expected = new - 0.5 * config.learning_rate * old if old.ndim > 1 else new
        torch.testing.assert_close(shrunk, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_multiply_every_loss(loss: str) -> None:
    """Balanced weights have mean 1 over the images, so nothing is divided by their sum."""
    data = load(dataclasses.replace(TASK.data, limit=None), 5, CPU)
    assert len(set(data.class_counts)) > 1  # classes of different sizes
    config = dataclasses.replace(
        GOOD, loss=Choice(loss), class_weights="balanced", batch_size=None, strength=0.0, augment={}
    )
    training = Training(dataclasses.replace(config, model=Choice("cnn", {"depth": 1, "width": 2})), 1, data)
    labels = data.labels[data.training_indices]
    logits = training.model(data.normalise(data.images[data.training_indices]))
    counts = torch.tensor(data.class_counts)
    loss_N = LOSSES[loss](logits, labels) * (len(labels) / (data.classes * counts))[labels]
    assert train_epoch(training).train_loss == pytest.approx(loss_N.mean().item(), rel=1e-5)


def test_an_epochs_loss_counts_images_alike_and_the_penalty_once_per_step() -> None:
    config = dataclasses.replace(
        GOOD, learning_rate=1e-12, augment={}, strength=0.1, model=Choice("cnn", {"depth": 1, "width": 2})
    )
    training = Training(config, 1, load(TASK.data, 5, CPU))
    data, weights = training.data, [p for p in training.model.parameters() if p.ndim > 1]
    penalty = 0.1 / 2 * sum(float(weight.detach().square().sum()) for weight in weights)
    logits = training.model(data.normalise(data.images[data.training_indices]))
    mean = nn.functional.cross_entropy(logits, data.labels[data.training_indices]).item()
    assert train_epoch(training).train_loss == pytest.approx(mean + penalty, rel=1e-5)


def test_decoupled_decay_follows_schedule_and_warmup() -> None:
    """A weight without a gradient shrinks by η·factor·λ in every step."""
    config = dataclasses.replace(
        GOOD,
        regulariser=Choice("weight_decay"),
        strength=0.5,
        optimizer=Choice("adamw", {"weight_decay": 0.1}),
        schedule=Choice("cosine", {"warmup": 1.5}),
        epochs=2,
    )
    training = Training(config, 1, load(TASK.data, 5, CPU))
    unused = nn.Parameter(torch.ones(2, 2))
    training._weights.append(unused)
    expected = 1.0
    for epoch in (1, 2):
        training.train_epoch()
        for number in range(4):
            step = (epoch - 1) * 4 + number
            factor = min(1, (step + 1) / 6) * (1 + math.cos(math.pi * step / 8)) / 2
            expected *= 1 - 0.01 * factor * 0.5
    torch.testing.assert_close(unused.detach(), torch.full((2, 2), expected))


def test_the_learning_rate_follows_the_schedule() -> None:
    config = dataclasses.replace(GOOD, schedule=Choice("step", {"factor": 0.1, "every": 1}))
    reports = run(PlainEngine(TASK, "cpu"), [trial(1, config)])[1]
    assert [report.learning_rate for report in reports] == pytest.approx([1e-2, 1e-3, 1e-4])


def test_an_epochs_chance_is_a_function_of_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which chance goes where is part of what other engines must reproduce."""
    asked: list[tuple[int, int, int]] = []

    def noted(seed: int, epoch: int, images: int, device: torch.device) -> Epoch:
        asked.append((seed, epoch, images))
        return Epoch(seed, epoch, images, device)

    monkeypatch.setattr("objectives.training.Epoch", noted)
    training = Training(GOOD, 1, load(TASK.data, 5, CPU))
    for _ in range(2):
        training.train_epoch()
    assert asked == [(1, 1, 160), (1, 2, 160)]


@pytest.mark.parametrize("images", [16, 37])
def test_the_cut_of_a_batch_changes_no_images_and_no_masks(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch through the model in one go, or in pieces of any size."""
    model = Choice("cnn", {"depth": 2, "width": 4, "dropout": 0.3})
    config = dataclasses.replace(
        GOOD, batch_size=None, optimizer=Choice("sgd"), augment={"rotation": 20.0, "crop": 1}, model=model
    )
    whole = first_report(config)
    monkeypatch.setattr("objectives.training.FORWARD_IMAGES", images)
    cut = first_report(config)
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-6)
    assert cut.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)


# Batch normalisation and a last batch of one image


ONE_LEFT = dataclasses.replace(GOOD, batch_size=53, epochs=1)  # 160 = 3 · 53 + 1


def test_a_last_batch_of_one_value_per_channel_is_refused_before_training() -> None:
    """`SMALL` makes maps of 1×1 of the digits, so that one image has one value per channel."""
    data = load(TASK.data, 5, CPU)
    with pytest.raises(TrialError, match="160 training images in batches of 53 leave one image"):
        Training(ONE_LEFT, 1, data)
    Training(dataclasses.replace(ONE_LEFT, batch_size=52), 1, data)
    Training(dataclasses.replace(ONE_LEFT, model=Choice("cnn", {"depth": 2, "batch_norm": False})), 1, data)


def test_a_last_batch_of_one_image_with_larger_maps_is_trained_on() -> None:
    model = Choice("cnn", {"depth": 1, "width": 2, "batch_norm": True})
    report = first_report(dataclasses.replace(ONE_LEFT, model=model))
    assert not report.diverged
    assert report.train_loss is not None


def test_running_statistics_are_those_of_the_training_batches() -> None:
    """momentum 0.1 and the unbiased variance, as torch has it; scoring leaves them alone."""
    training = Training(GOOD, 1, load(TASK.data, 5, CPU))
    norm = next(module for module in training.model.modules() if isinstance(module, nn.BatchNorm2d))
    mean, variance = torch.zeros(4), torch.ones(4)
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    training.train_epoch()
    for batch_BCHW in seen:
        mean = 0.9 * mean + 0.1 * batch_BCHW.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * batch_BCHW.var((0, 2, 3))
    assert [len(batch_BCHW) for batch_BCHW in seen] == [48, 48, 48, 16]
    training.validate()
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


# Divergence


def test_divergence_stops_within_the_epoch() -> None:
    training = Training(dataclasses.replace(DIVERGING, batch_size=8), 1, load(TASK.data, 5, CPU))
    assert training.train_epoch().images < 160


def test_parameters_that_are_not_finite_are_divergence_whatever_the_loss_says(
    user_module: ModuleType,
) -> None:
    class Blind(nn.Module):
        """Its scores never depend on its weight, whose gradient is NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nothing = torch.where(self.weight == 0, 0.0, self.weight.sqrt() / self.weight)
            return images.flatten(1)[:, :10] + nothing.nan_to_num(0)

    user_module.model = lambda shape, classes: Blind()  # type: ignore[attr-defined]
    report = first_report(dataclasses.replace(USERS_MODEL, optimizer=Choice("sgd")), USERS_TASK)
    assert report.diverged
    assert report.metrics == worst_metrics()
    assert report.gradient_norm is None


def test_scores_that_are_not_finite_are_divergence(user_module: ModuleType) -> None:
    class OnlyWhenScored(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores = super().forward(images.flatten(1))
            return scores if self.training or not images.any() else scores / 0

    user_module.model = lambda shape, classes: OnlyWhenScored(64, classes)  # type: ignore[attr-defined]
    report = first_report(USERS_MODEL, USERS_TASK)
    assert report.diverged
    assert report.train_loss is not None
    assert report.validation_loss is None
    assert report.metrics == worst_metrics()


def test_a_validation_loss_that_is_not_finite_is_divergence(user_module: ModuleType) -> None:
    def only_finite_in_training(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return logits_BK.square().mean(-1) + (0 if logits_BK.requires_grad else torch.inf)

    user_module.loss = only_finite_in_training  # type: ignore[attr-defined]
    report = first_report(dataclasses.replace(GOOD, loss=Choice("users_own:loss")), USERS_TASK)
    assert report.diverged
    assert report.train_loss is not None
    assert report.validation_loss is None
    assert report.metrics == worst_metrics()
