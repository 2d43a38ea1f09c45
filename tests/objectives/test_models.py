"""Models have the sizes, weights and refusals that they promise."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

from objectives.base import Choice, Scalar, TrialError
from objectives.chance import Epoch
from objectives.devices import seeded
from objectives.models import (
    ACTIVATIONS,
    MODELS,
    Dropout,
    EpochMasks,
    InputShape,
    build,
    cnn,
    has_batch_statistics,
    resnet,
    set_masks,
)
from objectives.registry import options

DIGITS = (1, 8, 8)
CIFAR = (3, 32, 32)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.children()]


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


# The CNN


def test_the_default_cnn_is_that_of_the_tutorial() -> None:
    model = cnn(CIFAR, 10)
    assert parameters(model) == 122_570
    assert kinds(model) == [
        *("Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU"),
        *("Flatten", "Linear", "ReLU", "Linear"),
    ]


@pytest.mark.parametrize("shape", [DIGITS, (1, 28, 28), CIFAR, (3, 9, 17), (4, 64, 48)])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_scores_every_shape(model: str, shape: InputShape) -> None:
    built = build(Choice(model), shape, 7, seed=1)
    assert built(torch.rand(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize(
    ("shape", "chosen", "pools"),
    [
        (DIGITS, {}, 0),
        (DIGITS, {"depth": 2}, 1),
        (DIGITS, {"padding": "same"}, 2),
        (DIGITS, {"padding": "same", "depth": 6}, 3),
        ((1, 28, 28), {}, 2),
        (CIFAR, {"depth": 1}, 0),
    ],
)
def test_pools_are_left_out_where_the_rest_would_not_fit(
    shape: InputShape, chosen: dict[str, Scalar], pools: int
) -> None:
    model = build(Choice("cnn", chosen), shape, 10, seed=1)
    assert count(model, nn.MaxPool2d) == pools
    assert model(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("side", [3, 4, 8, 13])
def test_a_cnn_fits_or_says_why_not(side: int, depth: int, kernel: int, padding: str) -> None:
    choice = Choice("cnn", {"depth": depth, "kernel": kernel, "padding": padding, "width": 2})
    if padding == "valid" and side <= depth * (kernel - 1):
        with pytest.raises(TrialError, match=r"too small.*padding: same"):
            build(choice, (1, side, side), 3, seed=1)
    else:
        model = build(choice, (1, side, side), 3, seed=1)
        assert count(model, nn.Conv2d) == depth
        assert model(torch.rand(2, 1, side, side)).shape == (2, 3)


def test_an_even_kernel_can_not_be_padded_evenly() -> None:
    with pytest.raises(TrialError, match="odd"):
        cnn(DIGITS, 10, kernel=2, padding="same")
    assert cnn(DIGITS, 10, kernel=2)(torch.rand(2, *DIGITS)).shape == (2, 10)


def test_width_and_growth_are_channels() -> None:
    model = cnn(CIFAR, 10, depth=4, width=8, growth=1.5)
    assert [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)] == [
        8,
        12,
        12,
        12,
    ]


@pytest.mark.parametrize(("name", "kind"), ACTIVATIONS.items())
def test_activations(name: str, kind: Callable[[], nn.Module]) -> None:
    model = cnn(CIFAR, 10, activation=name)  # type: ignore[arg-type]
    assert count(model, type(kind())) == 4


def test_the_options_of_the_cnn_are_searchable() -> None:
    found = options("model", "cnn")
    assert found["activation"].choices == tuple(ACTIVATIONS)
    assert found["batch_norm"].kind == "bool"
    assert found["dropout"].high_open
    assert not found["batch_norm"].default


def test_switches_add_their_layers() -> None:
    assert has_batch_statistics(cnn(CIFAR, 10, batch_norm=True))
    assert not has_batch_statistics(cnn(CIFAR, 10))
    assert count(cnn(CIFAR, 10, dropout=0.5), Dropout) == 1
    assert count(cnn(CIFAR, 10, dense=0), nn.Linear) == 1


# The residual network


def test_the_default_resnet_is_resnet_8() -> None:
    model = resnet(CIFAR, 10)
    on_the_path = [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and getattr(m, "kernel_size", 0) != (1, 1)
    ]
    assert len(on_the_path) == 8
    assert model[:-3](torch.rand(1, *CIFAR)).shape == (1, 64, 8, 8)


def test_group_norm_needs_no_batch() -> None:
    assert has_batch_statistics(resnet(CIFAR, 10))
    model = resnet(CIFAR, 10, norm="group", width=12, depth=2).train()
    assert not has_batch_statistics(model)
    images = torch.rand(4, *CIFAR)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


# Initial weights


@pytest.mark.parametrize("model", MODELS)
def test_initial_weights_depend_on_the_seed_alone(model: str) -> None:
    torch.manual_seed(1)
    first = build(Choice(model), DIGITS, 10, seed=2**62 + 1)
    torch.rand(3)
    again, other = (build(Choice(model), DIGITS, 10, seed=seed) for seed in (2**62 + 1, 2**62 + 2))
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert any(
        not torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_building_leaves_the_processes_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(Choice("cnn"), DIGITS, 10, seed=2)
    assert torch.equal(torch.rand(3), expected)


# Dropout


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    layer = Dropout(0.25)
    set_masks(layer, masks(100).next)
    out = layer(torch.ones(100, 1000))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)


def masks(images: int, first: int = 0) -> EpochMasks:
    """Of a pass of images of one trial's second epoch."""
    found = EpochMasks(Epoch(7, 2, 100, torch.device("cpu")))
    found.begin(first, images)
    return found


def test_dropout_takes_its_masks_and_nothing_of_the_process() -> None:
    model = nn.Sequential(Dropout(0.5), nn.Sequential(Dropout(0.5)))
    found = []
    for process_seed in (1, 2):
        torch.manual_seed(process_seed)
        before = torch.get_rng_state()
        set_masks(model, masks(8).next)
        found.append(model(torch.ones(8, 8)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)
    assert not torch.equal(model(torch.ones(8, 8)), found[0]), "the third and fourth of one pass"
    assert 0 < (found[0] > 0).float().mean() < 0.5, "two masks, not one twice"


def test_dropout_of_an_image_does_not_depend_on_how_a_batch_is_cut() -> None:
    model = nn.Sequential(Dropout(0.5), Dropout(0.0), Dropout(0.2))
    set_masks(model, masks(30).next)
    whole = model(torch.ones(30, 3, 4))
    for first, last in ((0, 1), (1, 20), (20, 30)):
        set_masks(model, masks(last - first, first).next)
        assert torch.equal(model(torch.ones(last - first, 3, 4)), whole[first:last])


def test_dropout_of_what_is_no_batch_of_images_is_drawn_too() -> None:
    """A user's model may have put images and places into one axis."""
    layer = Dropout(0.5)
    set_masks(layer, masks(4).next)
    out = layer(torch.ones(4 * 9, 40))
    assert len({tuple(row) for row in out.tolist()}) == 4 * 9
    set_masks(layer, masks(4, first=4).next)
    assert not torch.equal(layer(torch.ones(4 * 9, 40)), out)


def test_dropout_by_itself_draws_from_the_process() -> None:
    layer = Dropout(0.5)
    with seeded(3):
        first = layer(torch.ones(8, 8))
    with seeded(3):
        assert torch.equal(layer(torch.ones(8, 8)), first)
    assert (first == 0).any()


def test_dropout_does_nothing_when_scoring_or_off() -> None:
    images = torch.rand(4, 4)
    assert torch.equal(Dropout(0.9).eval()(images), images)
    assert torch.equal(Dropout(0.0)(images), images)


# A user's own


def test_a_users_factory_gets_shape_classes_and_options(user_module: ModuleType) -> None:
    def model(input_shape: InputShape, classes: int, *, hidden: int = 4) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], hidden), nn.Linear(hidden, classes)
        )

    user_module.model = model  # type: ignore[attr-defined]
    built = build(Choice("users_own:model", {"hidden": 9}), DIGITS, 10, 1, ["users_own"])
    assert built.training
    assert parameters(built) == 64 * 9 + 9 + 9 * 10 + 10


def fails(shape: InputShape, classes: int) -> nn.Module:
    raise RuntimeError("my own mistake")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (fails, "RuntimeError: my own mistake"),
        (lambda shape, classes: "a model", "must return a torch.nn.Module; it returned str"),
        (lambda shape, classes: nn.Linear(3, classes), "failed: RuntimeError"),
        (
            lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            r"\(B, 10\); for B = 2 it gave \(2, 3\)",
        ),
        (
            lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 10).requires_grad_(False)),
            "no parameters",
        ),
        (lambda shape: nn.Flatten(), "failed: TypeError"),
    ],
)
def test_what_is_wrong_with_a_users_model_is_said(
    user_module: ModuleType, factory: Callable[..., object], message: str
) -> None:
    user_module.model = factory  # type: ignore[attr-defined]
    with pytest.raises(TrialError, match=message):
        build(Choice("users_own:model"), DIGITS, 10, 1, ["users_own"])


def test_nothing_is_imported_that_is_not_allowed(user_module: ModuleType) -> None:
    user_module.model = fails  # type: ignore[attr-defined]
    with pytest.raises(TrialError, match="allow_imports"):
        build(Choice("users_own:model"), DIGITS, 10, 1)
    with pytest.raises(TrialError, match="known: cnn"):
        build(Choice("vgg"), DIGITS, 10, 1)
