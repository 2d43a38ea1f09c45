"""Images in folders: one folder per class, read by Pillow.

    root/train/<class>/*.png  with root/test/<class>/*.png, or
    root/<class>/*.png        without a test set: a fixed stratified 20 % of the files is sealed.

Files are ordered by name, so that every machine sees the same images in the same order. Which files
are sealed is decided on their names, before one is opened. Hidden files and folders (of macOS, of
notebooks) are left alone, and so are other folders beside `train` and `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from objectives.base import DataSpec, ObjectiveError
from objectives.registry import Problem
from objectives.sources import DataError, LabelledImages, Part, SourceSummary
from objectives.splits import TEST_SEED, TEST_SHARE, hold_out

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files that are taken for images; others are left alone."""


@dataclass(frozen=True, slots=True)
class _Listing:
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


class ImageFolderSource:
    """A user's own images, as RGB squares of `image_size` pixels (the aspect ratio is not kept)."""

    def summary(self, spec: DataSpec) -> SourceSummary:
        listing = _list(spec, "search")
        side = _image_size(spec)
        return SourceSummary(len(listing.files), len(listing.classes), (3, side, side), listing.labels)

    def problems(self, spec: DataSpec, part: Part) -> list[Problem]:
        found = []
        for check in (lambda: _image_size(spec), lambda: _list(spec, part)):
            try:
                check()
            except DataError as error:
                found.append(error.problem)
        return found

    def read(self, spec: DataSpec, part: Part) -> LabelledImages:
        listing = _list(spec, part)
        side = _image_size(spec)
        images_NHWC = np.stack([_decode(path, side) for path in listing.files])
        images_NCHW = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))
        return LabelledImages(images_NCHW, np.asarray(listing.labels, np.int64))


def _image_size(spec: DataSpec) -> int:
    if spec.image_size is None:
        raise DataError(
            "data.image_size", "an image folder has no size of its own", "give the side in pixels, e.g. 32"
        )
    return spec.image_size


def _list(spec: DataSpec, part: Part) -> _Listing:
    """The files of one part with their classes, after checking that there is something to learn."""
    if spec.root is None:
        raise DataError("data.root", "an image folder needs a root", "give the folder that holds the classes")
    root = spec.root.expanduser()
    if not root.is_dir():
        raise DataError("data.root", f"{root} is not a folder", "give the folder that holds the classes")
    divided = (root / "train").is_dir()
    if not divided and (root / "test").is_dir():  # as a class, it would be trained on
        raise DataError(
            "data.root",
            f"{root} has a test folder, but no train folder beside it",
            "move the folders of the classes into train, or give test another name if it is a class",
        )
    listing = _list_classes(root / "train" if divided else root)
    if len(listing.classes) < 2:
        raise DataError(
            "data.root",
            f"{root} holds {len(listing.classes)} classes",
            "make a folder of images per class, 2 or more",
        )
    if divided and (root / "test").is_dir():
        return listing if part == "search" else _list_test(root / "test", listing.classes)
    labels_N = np.asarray(listing.labels, np.int64)
    try:
        kept, sealed = hold_out(labels_N, TEST_SHARE, TEST_SEED)
    except ObjectiveError as error:
        raise DataError("data.root", str(error), "add images of the rare classes") from error
    chosen = kept if part == "search" else sealed
    return _Listing(
        tuple(listing.files[index] for index in chosen),
        tuple(listing.labels[index] for index in chosen),
        listing.classes,
    )


def _list_test(folder: Path, classes: tuple[str, ...]) -> _Listing:
    listing = _list_classes(folder)
    unknown = sorted(set(listing.classes) - set(classes))
    if unknown or not listing.files:
        what = f"classes that training lacks: {', '.join(unknown)}" if unknown else "no images"
        raise DataError("data.root", f"{folder} holds {what}", "give it the classes of the training folder")
    labels = tuple(classes.index(listing.classes[label]) for label in listing.labels)
    return _Listing(listing.files, labels, classes)


def _list_classes(folder: Path) -> _Listing:
    files: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        images = sorted(path for path in subfolder.rglob("*") if _is_image(path, subfolder))
        if images:
            labels.extend([len(classes)] * len(images))
            classes.append(subfolder.name)
            files.extend(images)
    return _Listing(tuple(files), tuple(labels), tuple(classes))


def _is_image(path: Path, folder: Path) -> bool:
    """By its name alone. A link to nowhere is one, so that it is found missing rather than left out."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not path.is_dir()


def _decode(path: Path, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """One image as [side, side, 3]."""
    try:
        with Image.open(path) as image:
            square = _rgb(image).resize((side, side), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's parsers raise almost anything for damaged files
        raise DataError(
            "data.root", f"{path} can't be read as an image: {error}", "remove or replace that file"
        ) from error
    return np.asarray(square, np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits per channel; transparency is dropped, of several frames the first is taken."""
    if image.mode == "F":
        raise ValueError("its pixels are fractions, of which it can't be told what is black and white")
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would cut all off at 255
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((grey_HW >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # on the way to RGB, or Pillow warns of transparent colours
    return image.convert("RGB")
