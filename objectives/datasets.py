"""The images that trials are trained, validated and, once, tested on.

Shapes: N images that a search may use, C channels, H rows, W columns, K classes.

`load` and `describe` never touch test images; `load_test` is the only function that reads them, and
nothing in a search calls it. To add a dataset: write a `Source` and add its line to `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from objectives.base import DataSpec, ObjectiveError
from objectives.image_folder import ImageFolderSource
from objectives.registry import Problem, problem_of_name
from objectives.sources import DataError, DigitsSource, LabelledImages, Source, SourceSummary
from objectives.splits import Indices, held_out_count, hold_out, subset
from objectives.torchvision_sources import CifarSource, IdxSource, SvhnSource

RESIZED_AT_ONCE = 4096
"""Images that are resized or counted in one go, to bound the memory that takes."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchData:
    """The images of a search, on one device, split into training and validation.

    Shared by all trials of the process with the same split: read, never written.
    """

    images: Tensor
    """NCHW, uint8, 0..255: a quarter of the size of normalised ones."""
    labels: Tensor
    """int64, 0..K−1."""
    training_indices: Tensor
    """int64, sorted."""
    validation_indices: Tensor
    """int64, sorted."""
    mean: Tensor
    """Mean pixel of the training images, per channel, in 0..255; float32."""
    std: Tensor
    """Standard deviation likewise; 1 for a channel that is constant."""
    classes: int
    class_counts: tuple[int, ...]
    """Training images of each class."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Pixels as float32 with mean 0 and deviation 1 over the training images, channels last."""
        pixels = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
        return pixels.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


@dataclass(frozen=True, slots=True, eq=False)
class TestData:
    """The sealed images of a dataset, on one device."""

    images: Tensor
    """NCHW, uint8, 0..255."""
    labels: Tensor

    __test__ = False  # not a test class, whatever pytest makes of the name


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What is known of an experiment's images before one is decoded."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    non_test_images: int
    """After `limit`."""
    train_images: int
    validation_images: int


@lru_cache(maxsize=32)
def load(spec: DataSpec, split_seed: int, device: torch.device) -> SearchData:
    """The images of a search, split by `split_seed`, stratified by class.

    Kept for the life of the process; splits of the same data share the images. Raises `DataError`.
    """
    same_images = replace(spec, validation=0.5)  # whatever the share, so that splits share the images
    images_NCHW, labels_N = _search_images(same_images, device)
    classes = int(labels_N.max()) + 1
    training, validation = _held_out(labels_N.numpy(force=True), spec, split_seed)
    training_indices = torch.from_numpy(training).to(device)
    mean_C, std_C = _statistics(images_NCHW, training_indices)
    return SearchData(
        images=images_NCHW,
        labels=labels_N,
        training_indices=training_indices,
        validation_indices=torch.from_numpy(validation).to(device),
        mean=mean_C,
        std=std_C,
        classes=classes,
        class_counts=tuple(torch.bincount(labels_N[training_indices], minlength=classes).tolist()),
    )


def load_test(spec: DataSpec, device: torch.device) -> TestData:
    """The sealed test images. The only function that reads them; not kept. Raises `DataError`."""
    found = _resized(source_of(spec).read(spec, "test"), spec.image_size)
    return TestData(torch.from_numpy(found.images).to(device), torch.from_numpy(found.labels).to(device))


def describe(spec: DataSpec) -> DataSummary:
    """Counts and shape, without decoding an image or using a network. Raises `DataError`."""
    summary = source_of(spec).summary(spec)
    images = min(summary.search_images, spec.limit or summary.search_images)
    validation = held_out_count(images, spec.validation, summary.classes)
    return DataSummary(
        name=spec.name,
        classes=summary.classes,
        shape=_resized_shape(summary, spec.image_size),
        non_test_images=images,
        train_images=images - validation,
        validation_images=validation,
    )


def problems_of_data(spec: DataSpec, *, batch_sizes: Sequence[int] = ()) -> list[Problem]:
    """Everything that is wrong with the data asked for, cheaply: no image is decoded, no network used.

    `batch_sizes` are those that trials may take; none may exceed the training images.
    """
    unknown = problem_of_name("data", spec.name, key="data.name")
    if unknown:
        return [unknown]
    problems = _problems_of_numbers(spec)
    found = source_of(spec).problems(spec, "search")
    if problems or found:
        return problems + found
    summary = source_of(spec).summary(spec)
    left = summary.search_images - (spec.limit or 0)
    if spec.limit and 0 < left < summary.classes:  # too few to be stratified, as the images left out are too
        most = summary.search_images - summary.classes
        return [
            Problem(
                "data.limit",
                f"{spec.limit} leaves out {left} images only",
                f"use {most} or fewer, or leave it out",
            )
        ]
    return _problems_of_counts(describe(spec), batch_sizes) or _problems_of_labels(summary, spec)


def source_of(spec: DataSpec) -> Source:
    """The source that a spec names. Raises `DataError` for one that there isn't."""
    unknown = problem_of_name("data", spec.name, key="data.name")
    if unknown:
        raise DataError(*unknown)
    return DATASETS[spec.name]


def _problems_of_numbers(spec: DataSpec) -> list[Problem]:
    problems = []
    if not 0 < spec.validation < 1:
        problems.append(
            Problem("data.validation", f"{spec.validation} is no share", "write a number above 0 and below 1")
        )
    if spec.image_size is not None and spec.image_size < 1:
        problems.append(
            Problem("data.image_size", f"{spec.image_size} is no side in pixels", "write 1 or more")
        )
    if spec.limit is not None and spec.limit < 1:
        problems.append(
            Problem("data.limit", f"{spec.limit} is no number of images", "write 1 or more, or leave it out")
        )
    return problems


def _problems_of_counts(summary: DataSummary, batch_sizes: Sequence[int]) -> list[Problem]:
    # Stratified choices need an image of each class on both sides.
    if summary.train_images < summary.classes:
        counts = f"{summary.non_test_images} images, {summary.validation_images} of them for validation"
        key = "data.limit" if summary.non_test_images < 2 * summary.classes else "data.validation"
        return [Problem(key, f"{counts}, are too few to train {summary.classes} classes", "use more images")]
    return [
        Problem(
            "batch_size",
            f"{size} is more than the {summary.train_images} training images",
            f"use {summary.train_images} or fewer, or `full`",
        )
        for size in sorted(set(batch_sizes))
        if size > summary.train_images
    ]


def _problems_of_labels(summary: SourceSummary, spec: DataSpec) -> list[Problem]:
    """Classes with too few images, where labels are known without decoding."""
    if summary.labels is None:
        return []
    labels_N = np.asarray(summary.labels, np.int64)
    try:
        _held_out(labels_N[_chosen(labels_N, spec)], spec, 0)  # any seed: all take as many of a class
    except DataError as error:
        return [error.problem]
    return []


@lru_cache(maxsize=2)
def _search_images(spec: DataSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """All images that a search may use, with their labels: once per process and device."""
    found = source_of(spec).read(spec, "search")
    if spec.limit is not None:
        chosen = _chosen(found.labels, spec)
        found = LabelledImages(found.images[chosen], found.labels[chosen])
    found = _resized(found, spec.image_size)
    return torch.from_numpy(found.images).to(device), torch.from_numpy(found.labels).to(device)


def _chosen(labels_N: Indices, spec: DataSpec) -> Indices:
    """The images that `limit` leaves. Raises `DataError`."""
    try:
        return subset(labels_N, len(labels_N) if spec.limit is None else spec.limit)
    except ObjectiveError as error:
        raise DataError("data.limit", str(error), "use a higher limit") from error


def _held_out(labels_N: Indices, spec: DataSpec, split_seed: int) -> tuple[Indices, Indices]:
    """(training, validation). Raises `DataError`."""
    try:
        return hold_out(labels_N, spec.validation, split_seed)
    except ObjectiveError as error:
        raise DataError("data.validation", str(error), "use more images, or another share") from error


def _resized(found: LabelledImages, image_size: int | None) -> LabelledImages:
    """Bilinear with antialiasing, to squares; unchanged if they have that size already."""
    if image_size is None or found.images.shape[-2:] == (image_size, image_size):
        return found
    parts = [
        functional.interpolate(part.float(), size=(image_size, image_size), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in torch.split(torch.from_numpy(found.images), RESIZED_AT_ONCE)
    ]
    return LabelledImages(np.ascontiguousarray(torch.cat(parts).numpy()), found.labels)


def _resized_shape(summary: SourceSummary, image_size: int | None) -> tuple[int, int, int]:
    channels, height, width = summary.shape
    return (channels, image_size or height, image_size or width)


def _statistics(images_NCHW: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, from exact counts of the 256 levels: the same on every device."""
    channels = images_NCHW.shape[1]
    counts_CL = torch.zeros(channels, 256, dtype=torch.int64)
    for part in torch.split(indices, RESIZED_AT_ONCE):
        images_BCHW = images_NCHW[part]
        for channel in range(channels):
            counts_CL[channel] += torch.bincount(images_BCHW[:, channel].flatten(), minlength=256).cpu()
    share_CL = counts_CL.double() / counts_CL.sum(dim=1, keepdim=True)
    level_L = torch.arange(256, dtype=torch.float64)
    mean_C = share_CL @ level_L
    std_C = ((share_CL * (level_L - mean_C[:, None]).square()).sum(dim=1)).sqrt()
    std_C = torch.where(std_C > 0, std_C, 1.0)
    return mean_C.float().to(images_NCHW.device), std_C.float().to(images_NCHW.device)


DATASETS: Mapping[str, Source] = {
    "digits": DigitsSource(),
    "mnist": IdxSource("MNIST", 60_000, 10_000, 10, (1, 28, 28)),
    "fashion_mnist": IdxSource("FashionMNIST", 60_000, 10_000, 10, (1, 28, 28)),
    "kmnist": IdxSource("KMNIST", 60_000, 10_000, 10, (1, 28, 28)),
    "cifar10": CifarSource("CIFAR10", 50_000, 10_000, 10, (3, 32, 32)),
    "cifar100": CifarSource("CIFAR100", 50_000, 10_000, 100, (3, 32, 32)),
    "svhn": SvhnSource("SVHN", 73_257, 26_032, 10, (3, 32, 32)),
    "image_folder": ImageFolderSource(),
}
