"""A trial's own images, batch by batch, with all that its seed decides about them.

Shapes: B images of a piece, C channels, H, W height and width, F features.

The order, augmentation and dropout masks are those of `objectives.training`: the same generators, seeded the
same way, asked for the same numbers in the same order. So it does not matter when, where or with which
neighbours a trial is trained.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from objectives.augment import augment
from objectives.base import TrialConfig, derive_seed
from objectives.datasets import SearchData
from objectives.devices import generator
from objectives.optimizers import effective_batch_size
from objectives.training import FORWARD_IMAGES


@dataclass(slots=True)
class Piece:
    """Images that draw their chance together: a batch, or a part of one that is too large."""

    indices: Tensor
    """B: their places among all images."""
    labels: Tensor
    augmented: Tensor | None
    """BCHW, normalised; None: as they are."""
    kept: list[Tensor | None]
    """For each dropout layer BF: what it multiplies by."""
    batch: int
    """Images of the whole batch."""
    ends_batch: bool
    taken: int = 0
    """Images that have been through the model."""

    @property
    def left(self) -> int:
        return len(self.labels) - self.taken


@dataclass(frozen=True, slots=True)
class Masks:
    """The dropout of a trial."""

    shares: Sequence[float]
    features: Sequence[int]
    dtype: torch.dtype

    def draw(self, images: int, chance: Generator) -> list[Tensor | None]:
        """As `objectives.models.Dropout` draws them for so many images."""
        masks: list[Tensor | None] = []
        for share, features in zip(self.shares, self.features, strict=True):
            if share == 0:
                masks.append(None)
                continue
            kept_BF = torch.empty((images, features), dtype=self.dtype, device=chance.device)
            masks.append(kept_BF.bernoulli_(1 - share, generator=chance).div_(1 - share))
        return masks


class Feed:
    """The pieces of one trial, epoch after epoch. `whole`: batches are never cut."""

    def __init__(
        self, config: TrialConfig, seed: int, data: SearchData, masks: Masks, *, whole: bool
    ) -> None:
        self.data = data
        self.images = len(data.training_indices)
        self.batch_size = effective_batch_size(config, self.images)
        self.steps_per_epoch = math.ceil(self.images / self.batch_size)
        self._piece = self.batch_size if whole else FORWARD_IMAGES
        self._config, self._seed, self._masks = config, seed, masks
        self._left: deque[tuple[Tensor, int, bool]] = deque()

    def start(self, epoch: int) -> None:
        """Shuffle for an epoch, counted from 1."""
        device = self.data.images.device
        chance = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order_N = torch.randperm(self.images, generator=chance).to(device)
        self._augmenting = generator(derive_seed(self._seed, "augment", epoch), device)
        self._dropping = generator(derive_seed(self._seed, "dropout", epoch), device)
        self._left.clear()
        for batch_B in torch.split(self.data.training_indices[order_N], self.batch_size):
            pieces = torch.split(batch_B, self._piece)
            self._left.extend((piece, len(batch_B), piece is pieces[-1]) for piece in pieces)

    def next(self) -> Piece | None:
        """The epoch's next piece; None at its end."""
        if not self._left:
            return None
        indices_B, batch, ends_batch = self._left.popleft()
        augmented_BCHW = None
        if self._config.augment:
            images_BCHW = self.data.normalise(self.data.images[indices_B])
            augmented_BCHW = augment(images_BCHW, self._config.augment, self._augmenting)
        return Piece(
            indices=indices_B,
            labels=self.data.labels[indices_B],
            augmented=augmented_BCHW,
            kept=self._masks.draw(len(indices_B), self._dropping),
            batch=batch,
            ends_batch=ends_batch,
        )
