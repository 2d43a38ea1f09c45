"""A trial's own images, batch by batch, with all that its seed decides about them.

Shapes: B images, C channels, H, W height and width, F features.

The order, augmentation and dropout masks are those of `objectives.training`: the same functions of the
trial's seed, the epoch, and an image's place in it. So it does not matter when, where or with which
neighbours a trial is trained. Recorded steps compute the same from tables, see `objectives.fused.recorded`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.augment import augment
from objectives.base import TrialConfig, derive_seed
from objectives.chance import Epoch, Numbers, Purpose
from objectives.datasets import SearchData
from objectives.devices import moved
from objectives.optimizers import effective_batch_size
from objectives.training import AUGMENTED_ELEMENTS, FORWARD_IMAGES


@dataclass(frozen=True, slots=True)
class Dropping:
    """The dropout layers of a trial, in the order in which they run."""

    shares: Sequence[float]
    features: Sequence[int]
    dtype: torch.dtype

    def masks(self, chance: Epoch, first: int, images: int) -> list[Tensor | None]:
        """For each layer, what it multiplies so many images by, BF, from a place on; None: by nothing."""
        return [
            chance.kept(layer, share, features, self.dtype, first=first, count=images) if share else None
            for layer, (share, features) in enumerate(zip(self.shares, self.features, strict=True))
        ]


class Feed:
    """The images of one trial, epoch after epoch. `whole`: batches are never cut."""

    def __init__(
        self, config: TrialConfig, seed: int, data: SearchData, dropping: Dropping, *, whole: bool
    ) -> None:
        self.data = data
        self.images = len(data.training_indices)
        self.batch_size = effective_batch_size(config, self.images)
        self.steps_per_epoch = math.ceil(self.images / self.batch_size)
        self.piece = self.batch_size if whole else min(self.batch_size, FORWARD_IMAGES)
        """Images that go through a model together where a trial is alone, at most: a batch, or a part of a
        large one."""
        self.dropping = dropping
        self._config, self._seed = config, seed
        self.order = data.training_indices
        """The epoch's: places among all images."""
        self._ahead: tuple[int, Tensor] | None = None
        """An epoch, and its order among the training images."""
        self._labels_N: Tensor | None = None
        self._augmented: tuple[int, Tensor | None] = (0, None)
        """The place of the first, and images that were augmented together because some were needed."""

    def prepare(self, epoch: int) -> None:
        """Shuffle ahead for an epoch, counted from 1: it takes long enough for a device to wait for it."""
        self._ahead = epoch, self._shuffled(epoch)

    def _shuffled(self, epoch: int) -> Tensor:
        chance = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        return torch.randperm(self.images, generator=chance)

    def start(self, epoch: int) -> None:
        """Go to the beginning of an epoch, counted from 1."""
        device = self.data.images.device
        order = self._ahead[1] if self._ahead and self._ahead[0] == epoch else self._shuffled(epoch)
        self._ahead = None
        self.order = self.data.training_indices.index_select(0, moved(order, device))
        self._labels_N = None
        self.chance = Epoch(self._seed, epoch, self.images, device)
        self._augmented = (0, None)

    def indices(self, first: int, images: int) -> Tensor:
        """The places among all images of those from this place in the epoch on."""
        return self.order[first : first + images]

    def labels(self, first: int, images: int) -> Tensor:
        """Theirs."""
        if self._labels_N is None:
            self._labels_N = self.data.labels.index_select(0, self.order)
        return self._labels_N[first : first + images]

    def augmented(self, first: int, images: int) -> Tensor | None:
        """Images BCHW, normalised, the first of which has this place in the epoch; None: as they are."""
        if not self._config.augment:
            return None
        start, ready_NCHW = self._augmented
        if ready_NCHW is None or not start <= first <= first + images <= start + len(ready_NCHW):
            together = max(images, AUGMENTED_ELEMENTS // math.prod(self.data.input_shape))
            start, ready_NCHW = first, self._augment(first, min(together, self.images - first))
            self._augmented = start, ready_NCHW
        return ready_NCHW[first - start : first - start + images]

    def _augment(self, first: int, images: int) -> Tensor:
        def numbers(purpose: Purpose) -> Numbers:
            return self.chance.numbers(purpose, first, images)

        images_BCHW = self.data.normalise(self.data.images.index_select(0, self.indices(first, images)))
        return augment(images_BCHW, self._config.augment, numbers)

    def masks(self, first: int, images: int) -> list[Tensor | None]:
        """As `Dropping.masks`, in this epoch."""
        return self.dropping.masks(self.chance, first, images)
