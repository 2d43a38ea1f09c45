"""Datasets in torchvision's layout on disk, read part by part.

torchvision's own classes want every file of a dataset, unpacked, in a folder they may write to. Here
a part needs only its own files (the test set stays sealed, and may be absent during a search), and
packed files in a read-only root are unpacked into our cache folder, after their MD5 was checked.

Several processes may do that at once: each works in a folder of its own and renames the finished
files into place, so that a file is either absent or whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from objectives.base import DataSpec
from objectives.registry import Problem
from objectives.sources import DataError, LabelledImages, Part, SourceSummary, cache_folder
from objectives.torchvision_ops import torchvision_datasets


@dataclass(frozen=True, slots=True)
class TorchvisionSource(ABC):
    """A class of `torchvision.datasets` and its published size."""

    class_name: str
    search_images: int
    test_images: int
    classes: int
    shape: tuple[int, int, int]

    def summary(self, spec: DataSpec) -> SourceSummary:  # noqa: ARG002 (the interface's)
        return SourceSummary(self.search_images, self.classes, self.shape)

    def problems(self, spec: DataSpec, part: Part) -> list[Problem]:
        root = _root(spec)
        if spec.download:
            return [] if _writable(root) or self._present(root, part) else [_not_writable(root)]
        return [] if self._present(root, part) else [self._missing(root, part)]

    def read(self, spec: DataSpec, part: Part) -> LabelledImages:
        root = self._prepare(spec, part)
        try:
            images_NCHW, labels_N = self._decode(self._view(part), root)
        except Exception as error:  # torchvision's parsers raise almost anything, assertions included
            raise DataError(*self._damaged(root, repr(error))) from error
        expected = self.search_images if part == "search" else self.test_images
        if images_NCHW.shape != (expected, *self.shape) or labels_N.shape != (expected,):
            raise DataError(*self._damaged(root, f"{images_NCHW.shape} is not {(expected, *self.shape)}"))
        return LabelledImages(np.ascontiguousarray(images_NCHW), labels_N.astype(np.int64))

    # What differs between layouts; paths are relative to the root.

    @abstractmethod
    def _files(self, part: Part) -> tuple[str, ...]:
        """The unpacked files that a part consists of."""

    @abstractmethod
    def _archives(self, part: Part) -> tuple[str, ...]:
        """The packed files from which `_files` are made; empty if the layout has none."""

    @abstractmethod
    def _checksums(self, part: Part) -> tuple[str, ...]:
        """MD5 of each of `_archives`, from torchvision."""

    @abstractmethod
    def _view(self, part: Part) -> Any:
        """The class of torchvision, narrowed so that it looks for the files of one part only."""

    @abstractmethod
    def _decode(self, dataset: Any, root: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(images NCHW, labels) by torchvision's class, which finds its files in the root."""

    # Finding, unpacking, downloading.

    def _present(self, root: Path, part: Part) -> bool:
        return _all_in(root, self._files(part)) or _all_in(root, self._archives(part))

    def _prepare(self, spec: DataSpec, part: Part) -> Path:
        """The folder that holds the unpacked files of a part, after making them if need be."""
        root = _root(spec)
        if _all_in(root, self._files(part)):
            return root
        if not _all_in(root, self._archives(part)):
            if not spec.download:
                raise DataError(*self._missing(root, part))
            self._download(root, part)
            return root
        unpacked = cache_folder()
        if not _all_in(unpacked, self._files(part)):
            self._unpack(root, unpacked, part)
        return unpacked

    def _unpack(self, root: Path, destination: Path, part: Part) -> None:
        utils = torchvision_datasets().utils
        with _aside(destination) as work:
            for archive, checksum in zip(self._archives(part), self._checksums(part), strict=True):
                if not utils.check_integrity(str(root / archive), checksum):
                    raise DataError(*self._damaged(root / archive, "its MD5 is not the published one"))
                target = (work / archive).parent
                target.mkdir(parents=True, exist_ok=True)
                utils.extract_archive(str(root / archive), str(target))

    def _download(self, root: Path, part: Part) -> None:
        if not _writable(root):
            raise DataError(*_not_writable(root))
        try:
            with _aside(root) as work:
                self._fetch(self._view(part), work, part)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, torchvision's RuntimeErrors
            raise DataError(
                "data.download",
                f"{self.class_name} could not be downloaded to {root}: {error}",
                "try again, or place the files there yourself",
            ) from error

    def _fetch(self, dataset: Any, root: Path, part: Part) -> None:
        dataset(root=str(root), train=part == "search", download=True)

    def _missing(self, root: Path, part: Part) -> Problem:
        name = (self._archives(part) or self._files(part))[0]
        return Problem(
            "data.root",
            f"{self.class_name} ({part} part) is not in {root}: no {name}",
            "set `data.root` to the folder that holds it, or `data.download: true`",
        )

    def _damaged(self, place: Path, why: str) -> Problem:
        return Problem(
            "data.root",
            f"{self.class_name} in {place} can't be read: {why}",
            "remove the damaged files and get them again",
        )


class IdxSource(TorchvisionSource):
    """MNIST's layout: `<class>/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte`, each with its .gz."""

    def _files(self, part: Part) -> tuple[str, ...]:
        prefix = "train" if part == "search" else "t10k"
        folder = f"{self.class_name}/raw"
        return (f"{folder}/{prefix}-images-idx3-ubyte", f"{folder}/{prefix}-labels-idx1-ubyte")

    def _archives(self, part: Part) -> tuple[str, ...]:
        return tuple(f"{name}.gz" for name in self._files(part))

    def _checksums(self, part: Part) -> tuple[str, ...]:
        return tuple(checksum for _, checksum in self._view(part).resources)

    def _view(self, part: Part) -> Any:
        whole = getattr(torchvision_datasets(), self.class_name)
        names = {Path(name).name for name in self._archives(part)}
        resources = [resource for resource in whole.resources if resource[0] in names]
        return type(self.class_name, (whole,), {"resources": resources})  # same name: it names the folder

    def _decode(self, dataset: Any, root: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        train = "train" in dataset.resources[0][0]
        loaded = dataset(root=str(root), train=train)
        return loaded.data.numpy()[:, None], loaded.targets.numpy()


class CifarSource(TorchvisionSource):
    """CIFAR's layout: one tar with pickled batches; of it a part opens its own batches only."""

    def _files(self, part: Part) -> tuple[str, ...]:
        folder, search, test, meta, _ = CIFAR_FILES[self.class_name]
        return tuple(f"{folder}/{name}" for name in ((*search, meta) if part == "search" else (test, meta)))

    def _archives(self, part: Part) -> tuple[str, ...]:  # noqa: ARG002 (the interface's)
        return (CIFAR_FILES[self.class_name][-1],)

    def _checksums(self, part: Part) -> tuple[str, ...]:
        return (self._view(part).tgz_md5,)

    def _view(self, part: Part) -> Any:
        whole = getattr(torchvision_datasets(), self.class_name)
        # torchvision checks the MD5 of all batches of both lists whichever it loads.
        other = "test_list" if part == "search" else "train_list"
        return type(self.class_name, (whole,), {other: []})

    def _decode(self, dataset: Any, root: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        loaded = dataset(root=str(root), train=bool(dataset.train_list))
        return loaded.data.transpose(0, 3, 1, 2), np.asarray(loaded.targets)


CIFAR_FILES = {
    "CIFAR10": (
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        "cifar-10-python.tar.gz",
    ),
    "CIFAR100": ("cifar-100-python", ("train",), "test", "meta", "cifar-100-python.tar.gz"),
}
"""Class → folder, batches to search on, test batch, class names, archive."""


class SvhnSource(TorchvisionSource):
    """SVHN's layout: one Matlab file per part, never packed."""

    def _files(self, part: Part) -> tuple[str, ...]:
        return ("train_32x32.mat",) if part == "search" else ("test_32x32.mat",)

    def _archives(self, part: Part) -> tuple[str, ...]:  # noqa: ARG002 (the interface's)
        return ()

    def _checksums(self, part: Part) -> tuple[str, ...]:  # noqa: ARG002 (the interface's)
        return ()

    def _view(self, part: Part) -> Any:
        whole = torchvision_datasets().SVHN
        split = "train" if part == "search" else "test"
        return type("SVHN", (whole,), {"split_list": {split: whole.split_list[split]}})

    def _decode(self, dataset: Any, root: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        loaded = dataset(root=str(root), split=next(iter(dataset.split_list)))
        return loaded.data, loaded.labels

    def _fetch(self, dataset: Any, root: Path, part: Part) -> None:  # noqa: ARG002 (the interface's)
        dataset(root=str(root), split=next(iter(dataset.split_list)), download=True)


def _root(spec: DataSpec) -> Path:
    return spec.root.expanduser() if spec.root else cache_folder()


def _all_in(root: Path, names: tuple[str, ...]) -> bool:
    return bool(names) and all((root / name).is_file() for name in names)


def _writable(root: Path) -> bool:
    """Whether files can be made in a folder that may not exist yet."""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _not_writable(root: Path) -> Problem:
    return Problem(
        "data.root",
        f"{root} can't be written to, so nothing can be downloaded there",
        "set `data.root` to a folder of yours, or leave it out to use the cache folder",
    )


@contextmanager
def _aside(destination: Path) -> Iterator[Path]:
    """A work folder beside the destination, whose files are renamed into it at the end, one by one."""
    destination.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".aside-", dir=destination))
    try:
        yield work
        for file in sorted(path for path in work.rglob("*") if path.is_file()):
            target = destination / file.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
