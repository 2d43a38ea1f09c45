"""Stratified choices of images: which are held out, which are used. Pure functions of labels and seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from objectives.base import ObjectiveError

Indices = NDArray[np.int64]

TEST_SHARE = 0.2
"""Share of the images sealed as the test set of a dataset that comes without one."""

TEST_SEED = 0
"""Seed of that choice: one and the same for every experiment, so that no search ever sees those images."""

LIMIT_SEED = 1
"""Seed of the stratified subset that `limit` takes: the same images for every replicate."""


def held_out_count(images: int, share: float, classes: int) -> int:
    """How many of so many images are held out: the share, rounded, but one per class at least."""
    return max(round(images * share), classes)


def hold_out(labels_N: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """(kept, held out): sorted indices, each class in its share of the whole.

    Raises `ObjectiveError` if a class has too few images to be on both sides.
    """
    classes = len(np.unique(labels_N))
    return _split(labels_N, held_out_count(len(labels_N), share, classes), seed)


def subset(labels_N: Indices, size: int, seed: int = LIMIT_SEED) -> Indices:
    """Sorted indices of `size` images, stratified; all of them if there are no more than that.

    Raises `ObjectiveError` if that leaves a class without images.
    """
    if size >= len(labels_N):
        return np.arange(len(labels_N))
    chosen = _split(labels_N, size, seed)[1]
    lost = np.setdiff1d(labels_N, labels_N[chosen])
    if len(lost):
        raise ObjectiveError(
            f"{size} of {len(labels_N)} images, stratified, leaves no image of class {lost[0]}"
        )
    return chosen


def _split(labels_N: Indices, size: int, seed: int) -> tuple[Indices, Indices]:
    try:
        kept, chosen = train_test_split(
            np.arange(len(labels_N)),
            test_size=size,
            random_state=np.random.RandomState(np.random.MT19937(seed)),  # an int seed may have 32 bits only
            stratify=labels_N,
        )
    except ValueError as error:  # scikit-learn says which class, or which side, has too few
        raise ObjectiveError(
            f"{len(labels_N)} images can't be split {len(labels_N) - size} to {size}, stratified: {error}"
        ) from error
    return np.sort(kept), np.sort(chosen)
