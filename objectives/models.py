"""Models: builders of `torch.nn.Module` from the shape of an image and the number of classes.

Shapes: B images, C channels, H rows, W columns, K classes. A model maps images_BCHW (float32,
normalised) to logits_BK: raw scores, no softmax. The trainer lays images and weights out channels last.

A user's own is named `module:factory` and called as `factory(input_shape, classes, **options)` with
`input_shape` = (C, H, W). To add a model: write its builder (options are keyword-only, with their range)
and add its line to `MODELS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Literal, TypeAlias
from weakref import WeakSet

import torch
from annotated_types import Interval
from torch import Tensor, nn

from objectives.base import Choice, TrialError
from objectives.chance import Epoch
from objectives.devices import seeded
from objectives.imports import is_import, resolve_import
from objectives.ranges import BelowOne, Count, Positive, PositiveCount

InputShape: TypeAlias = tuple[int, int, int]
"""(C, H, W)."""

Activation: TypeAlias = Literal["relu", "sigmoid", "tanh", "gelu", "elu", "silu"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}

Kernel: TypeAlias = Annotated[int, Interval(ge=1, le=11)]


Masks: TypeAlias = Callable[[float, Sequence[int], torch.dtype], Tensor | None]
"""Gives what the dropout that runs next multiplies by: for its share, and the shape and type of what it got.
None: nothing."""


class Dropout(nn.Module):
    """`nn.Dropout` that takes what it multiplies by from `masks` instead of the process's random numbers.

    In training each element is 0 with probability `share`, else scaled by 1/(1 − share). The trainer gives
    the same `masks` to all of a model's dropouts, which ask in the order in which they run.
    """

    masks: Masks | None = None
    """None: it is drawn from the process's random numbers."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or (self.share == 0 and self.masks is None):
            return input
        # Never drawn in less than float32: the same chance, and the same scale, in every precision.
        dtype = torch.promote_types(input.dtype, torch.float32)
        if self.masks is None:
            blank = torch.empty(input.shape, dtype=dtype, device=input.device)
            return (input * blank.bernoulli_(1 - self.share).div_(1 - self.share)).to(input.dtype)
        kept = self.masks(self.share, input.shape, dtype)
        return input if kept is None else (input * kept).to(input.dtype)

    def extra_repr(self) -> str:
        return f"share={self.share}"


class EpochMasks:
    """The masks of a trial in an epoch, by a dropout's number in a pass, and the places of the images."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._first = self._images = 0
        self.asked: list[tuple[float, Sequence[int], torch.dtype]] = []
        """What dropouts got in the pass so far: share, shape and type."""

    def begin(self, first: int, images: int) -> None:
        """A pass through the model begins, of so many images, from this place in the epoch on."""
        self._first, self._images = first, images
        self.asked = []

    def next(self, share: float, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """`Masks` of this pass."""
        self.asked.append((share, shape, dtype))
        layer = len(self.asked) - 1
        if shape[0] == self._images:
            return self.of(layer, self._first, self._images)
        # Nobody knows which image is where: as if all elements were the first one's.
        mask_1F = self._drawn(layer, share, math.prod(shape), dtype, first=self._first, images=1)
        return None if mask_1F is None else mask_1F.view(*shape)

    def of(self, layer: int, first: int, images: int) -> Tensor | None:
        """What a dropout that has asked multiplies so many images by, wherever they are in the epoch."""
        share, (_, *shape), dtype = self.asked[layer]
        mask_BF = self._drawn(layer, share, math.prod(shape), dtype, first=first, images=images)
        return None if mask_BF is None else mask_BF.view(images, *shape)

    def _drawn(
        self, layer: int, share: float, features: int, dtype: torch.dtype, *, first: int, images: int
    ) -> Tensor | None:
        if share == 0:
            return None
        return self._epoch.kept(layer, share, features, dtype, first=first, count=images)


def cnn(
    input_shape: InputShape,
    classes: int,
    *,
    depth: PositiveCount = 3,
    width: PositiveCount = 32,
    growth: Positive = 2.0,
    kernel: Kernel = 3,
    padding: Literal["valid", "same"] = "valid",
    activation: Activation = "relu",
    batch_norm: bool = False,
    dense: Count = 64,
    dropout: BelowOne = 0.0,
) -> nn.Module:
    """Blocks of convolution and 2×2 max-pooling, then a dense layer, then the scores.

    `depth` convolutions of `kernel`×`kernel`; the first has `width` channels, the others `width`·`growth`.
    Each is followed by batch normalisation (with `batch_norm`), `activation` and, but for the last, a
    pool. `dense` is the width of the dense layer, 0 leaves it out; `dropout` comes after it. With `padding`
    `valid`, maps shrink by `kernel` − 1 per convolution; with `same` they keep their size.

    A pool is left out where the convolutions after it would no longer fit, so that small images can have
    deep models: 8×8 with the defaults has no pool, 28×28 and 32×32 have both. Raises `TrialError` where even
    then the image is too small.

    The defaults are conv32-pool-conv64-pool-conv64-dense64, the network of TensorFlow's CNN tutorial:
    122,570 parameters for 3×32×32 and 10 classes.
    """
    channels, height, width_px = input_shape
    if padding == "same" and kernel % 2 == 0:
        raise TrialError(
            f"model cnn: a kernel of {kernel} can't be padded evenly; use an odd kernel, or padding: valid"
        )
    shrink = kernel - 1 if padding == "valid" else 0
    side = min(height, width_px)
    if side <= depth * shrink:
        raise TrialError(
            f"model cnn: images of {height}×{width_px} pixels are too small for {depth} convolutions of "
            f"{kernel}×{kernel}; use padding: same, fewer blocks (depth), or a smaller kernel"
        )
    layers: list[nn.Module] = []
    for block in range(depth):
        out = width if block == 0 else max(1, round(width * growth))
        pad = kernel // 2 if padding == "same" else 0
        layers.append(nn.Conv2d(channels, out, kernel, padding=pad, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(ACTIVATIONS[activation]())
        height, width_px, side, channels = height - shrink, width_px - shrink, side - shrink, out
        after = depth - block - 1
        if after and side // 2 > after * shrink:
            layers.append(nn.MaxPool2d(2))
            height, width_px, side = height // 2, width_px // 2, side // 2
    layers.append(nn.Flatten())
    features = channels * height * width_px
    if dense:
        layers += [nn.Linear(features, dense), ACTIVATIONS[activation]()]
        features = dense
    if dropout:
        layers.append(Dropout(dropout))
    layers.append(nn.Linear(features, classes))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            norm(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            norm(out),
        )
        same = stride == 1 and channels == out
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.body(input) + self.shortcut(input))


def resnet(
    input_shape: InputShape,
    classes: int,
    *,
    depth: PositiveCount = 1,
    width: PositiveCount = 16,
    norm: Literal["batch", "group"] = "batch",
    dropout: BelowOne = 0.0,
) -> nn.Module:
    """The small residual network for CIFAR: three stages of `depth` blocks, then the mean over the map.

    6·`depth` + 2 layers (depth 1 is ResNet-8, 3 is ResNet-20); `width` channels in the first stage, twice
    and four times that in the others, each of which halves the map. `norm` `group` normalises over groups of
    up to 8 channels of one image and needs no batch. Reference: He et al. 2016, *Deep Residual Learning*,
    section 4.2, with 1×1 convolutions as shortcuts (option B) for their zero padding.
    """
    normalise = nn.BatchNorm2d if norm == "batch" else _group_norm
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
        normalise(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(3):
        out = width * 2**stage
        for block in range(depth):
            layers.append(ResidualBlock(channels, out, 2 if stage and not block else 1, normalise))
            channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if dropout:
        layers.append(Dropout(dropout))
    layers.append(nn.Linear(channels, classes))
    return nn.Sequential(*layers)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // math.gcd(channels, 8), channels)


def build(
    choice: Choice,
    input_shape: InputShape,
    classes: int,
    seed: int,
    allow_imports: Collection[str] = (),
) -> nn.Module:
    """The model that `choice` names, on the CPU, in training mode; initial weights depend on `seed` only.

    The process's random numbers are as they were afterwards. Raises `TrialError` for a name that there
    isn't, and for a user's factory that raises or whose model doesn't give logits_BK.
    """
    with seeded(seed):
        if is_import(choice.name):
            factory = resolve_import(choice.name, allow_imports)
            return _checked(choice, factory, input_shape, classes)
        if choice.name not in MODELS:
            raise TrialError(f"there is no model {choice.name!r}; known: {', '.join(MODELS)}")
        return MODELS[choice.name](input_shape, classes, **choice.options)


_users_models: WeakSet[nn.Module] = WeakSet()
"""Those that users' factories have made and that are still held by someone."""


def _checked(
    choice: Choice, factory: Callable[..., object], input_shape: InputShape, classes: int
) -> nn.Module:
    """A user's model, new, after it has scored two blank images."""
    try:
        model = factory(input_shape, classes, **choice.options)
        scores = _scores_of_blanks(model, input_shape) if isinstance(model, nn.Module) else None
    except (Exception, SystemExit) as error:  # a user's `sys.exit()` must not end the worker
        raise TrialError(f"model {choice.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TrialError(
            f"model {choice.name!r} must return a torch.nn.Module; it returned {type(model).__name__}"
        )
    if not isinstance(scores, Tensor) or scores.shape != (2, classes):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TrialError(
            f"model {choice.name!r} must map images of shape (B, {', '.join(map(str, input_shape))}) to "
            f"scores of shape (B, {classes}); for B = 2 it gave {got}"
        )
    if model in _users_models:  # trained before, by another trial
        raise TrialError(f"model {choice.name!r} must make a new module at every call; it returned one twice")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrialError(f"model {choice.name!r} has no parameters to train")
    _users_models.add(model)
    return model


def _scores_of_blanks(model: nn.Module, input_shape: InputShape) -> object:
    model.eval()  # changes no statistics
    with torch.no_grad():
        scores = model(torch.zeros(2, *input_shape))
    model.train()
    return scores


def set_masks(model: nn.Module, masks: Masks | None) -> None:
    """Let all `Dropout` layers of a model multiply by these."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.masks = masks


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether an image's scores depend on its batch in training: any of torch's batch normalisations."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "resnet": resnet,
}
