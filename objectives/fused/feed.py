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
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from objectives.augment import augment
from objectives.base import TrialConfig, derive_seed
from objectives.datasets import SearchData
from objectives.devices import generator, moved
from objectives.optimizers import effective_batch_size
from objectives.training import FORWARD_IMAGES


@dataclass(slots=True)
class Piece:
    """Images that draw their chance together: a batch, or a part of one that is too large."""

    first: int
    """The place of its first image in the order of the epoch."""
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
        self.order = data.training_indices
        """The epoch's: places among all images."""
        self._left: deque[_Part] = deque()

    def start(self, epoch: int) -> None:
        """Shuffle for an epoch, counted from 1."""
        device = self.data.images.device
        chance = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        self.order = self.data.training_indices[moved(torch.randperm(self.images, generator=chance), device)]
        labels_N = self.data.labels[self.order]
        self._augmenting = generator(derive_seed(self._seed, "augment", epoch), device)
        self._dropping = generator(derive_seed(self._seed, "dropout", epoch), device)
        self._left.clear()
        for start in range(0, self.images, self.batch_size):
            end = min(start + self.batch_size, self.images)
            for first in range(start, end, self._piece):
                last = min(first + self._piece, end)
                self._left.append(
                    _Part(first, self.order[first:last], labels_N[first:last], end - start, last == end)
                )

    def next(self) -> Piece | None:
        """The epoch's next piece; None at its end."""
        if not self._left:
            return None
        part = self._left.popleft()
        augmented_BCHW = None
        if self._config.augment:
            images_BCHW = self.data.normalise(self.data.images[part.indices])
            augmented_BCHW = augment(images_BCHW, self._config.augment, self._augmenting)
        return Piece(
            first=part.first,
            indices=part.indices,
            labels=part.labels,
            augmented=augmented_BCHW,
            kept=self._masks.draw(len(part.indices), self._dropping),
            batch=part.batch,
            ends_batch=part.ends_batch,
        )


class _Part(NamedTuple):
    """Of an epoch: what is known of a piece when the epoch begins."""

    first: int
    indices: Tensor
    labels: Tensor
    batch: int
    ends_batch: bool
