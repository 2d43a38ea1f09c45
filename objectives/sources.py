"""Where images come from: the bundled digits, and what every source of images must offer.

A source keeps two parts apart: `search` (everything that may be trained or validated on) and
`test` (sealed). Reading one part never opens a file of the other where the dataset has files of
its own for each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import platformdirs
from numpy.typing import NDArray

from objectives.base import DataSpec, ObjectiveError
from objectives.registry import Problem
from objectives.splits import TEST_SEED, TEST_SHARE, hold_out

Part: TypeAlias = Literal["search", "test"]
"""`search`: the images that training and validation share. `test`: the sealed ones."""


class DataError(ObjectiveError):
    """Data are missing, damaged, or too few for what is asked; carries its `problem`."""

    def __init__(self, key: str, message: str, remedy: str) -> None:
        super().__init__(f"{key}: {message}; {remedy}")
        self.problem = Problem(key, message, remedy)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Pixels 0..255 and the class of each image, counted from 0."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What is known of a source without decoding an image."""

    search_images: int
    classes: int
    shape: tuple[int, int, int]
    """(channels, height, width) as stored."""
    labels: tuple[int, ...] | None = None
    """The class of each image, where that is known without decoding any."""


class Source(Protocol):
    """A dataset. Implementers guarantee the same images in the same order on every machine."""

    def summary(self, spec: DataSpec) -> SourceSummary:
        """Counts and shape, cheap. Raises `DataError` where even that needs files that are missing."""

    def problems(self, spec: DataSpec, part: Part) -> list[Problem]:
        """Why `read` would fail, as far as can be told without decoding images or a network."""

    def read(self, spec: DataSpec, part: Part) -> LabelledImages:
        """The images of one part. Raises `DataError`. Uses the network only if `spec.download`."""


def cache_folder() -> Path:
    """Where data that a user did not place anywhere are kept: `$SHOAL_HOME/cache`, or the system's place."""
    home = os.environ.get("SHOAL_HOME")
    base = Path(home) / "cache" if home else platformdirs.user_cache_path("shoal", appauthor=False)
    return base / "datasets"


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, which come with the library.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998. The bundled part has
    no test set: a fixed stratified 20 % of it is sealed. Pixels are 0..16, stored times 15.
    """

    def summary(self, spec: DataSpec) -> SourceSummary:  # noqa: ARG002 (the interface's)
        return SourceSummary(search_images=1438, classes=10, shape=(1, 8, 8))

    def problems(self, spec: DataSpec, part: Part) -> list[Problem]:  # noqa: ARG002 (the interface's)
        return []

    def read(self, spec: DataSpec, part: Part) -> LabelledImages:  # noqa: ARG002 (the interface's)
        everything = _digits()
        kept, sealed = hold_out(everything.labels, TEST_SHARE, TEST_SEED)
        chosen = kept if part == "search" else sealed
        return LabelledImages(everything.images[chosen], everything.labels[chosen])


@cache
def _digits() -> LabelledImages:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images_NHW = (bundle.images * 15).astype(np.uint8)  # 16 levels become 0..240, none is lost
    return LabelledImages(images_NHW[:, None], bundle.target.astype(np.int64))
