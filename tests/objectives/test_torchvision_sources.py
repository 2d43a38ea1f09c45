"""torchvision's layouts are read part by part, packed or not, by many processes, without a network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from objectives import datasets
from objectives.base import DataSpec
from objectives.datasets import DATASETS, describe, load, load_test, problems_of_data, source_of
from objectives.sources import DataError, Source, cache_folder
from objectives.torchvision_ops import torchvision_datasets
from objectives.torchvision_sources import CifarSource, IdxSource, SvhnSource

pytestmark = pytest.mark.usefixtures("forget_data")

CPU = torch.device("cpu")
CLASSES = 3


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def pixels(images: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (images, *shape), dtype=np.uint8)


# Tiny datasets in the real layouts, registered in place of the real ones


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with packed files of 60 training and 20 test images, known to torchvision by their MD5."""
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for prefix, images in (("train", 60), ("t10k", 20)):
        labels = np.arange(images, dtype=np.uint8) % CLASSES
        for name, head, values in (
            ("images-idx3", struct.pack(">4i", 2051, images, 28, 28), pixels(images, 28, 28, seed=images)),
            ("labels-idx1", struct.pack(">2i", 2049, images), labels),
        ):
            path = raw / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + values.tobytes()))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(torchvision_datasets().MNIST, "resources", resources)
    register(monkeypatch, mnist=IdxSource("MNIST", 60, 20, CLASSES, (1, 28, 28)))
    return tmp_path / "root"


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the archive of five training batches of 12 images and a test batch."""
    inside = tmp_path / "made" / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    whole = torchvision_datasets().CIFAR10
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        batch = {
            "data": pixels(12, 3 * 32 * 32, seed=seed),
            "labels": [number % CLASSES for number in range(12)],
        }
        (inside / name).write_bytes(pickle.dumps(batch))
    (inside / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / whole.filename, "w:gz") as tar:
        tar.add(inside, inside.name)
    lists = [[name, md5(inside / name)] for name in names]
    monkeypatch.setattr(whole, "train_list", lists[:5])
    monkeypatch.setattr(whole, "test_list", lists[5:])
    monkeypatch.setattr(whole, "meta", {**whole.meta, "md5": md5(inside / "batches.meta")})
    monkeypatch.setattr(whole, "tgz_md5", md5(root / whole.filename))
    register(monkeypatch, cifar10=CifarSource("CIFAR10", 60, 12, CLASSES, (3, 32, 32)))
    return root


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    whole = torchvision_datasets().SVHN
    root = tmp_path / "root"
    root.mkdir()
    splits = dict(whole.split_list)
    for split, images in (("train", 60), ("test", 20)):
        path = root / f"{split}_32x32.mat"
        # SVHN writes 10 for the digit 0, and images as height, width, channels, number.
        labels = np.where(np.arange(images) % CLASSES == 0, 10, np.arange(images) % CLASSES)[:, None]
        scipy.io.savemat(path, {"X": pixels(images, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels})
        splits[split] = [splits[split][0], path.name, md5(path)]
    monkeypatch.setattr(whole, "split_list", splits)
    register(monkeypatch, svhn=SvhnSource("SVHN", 60, 20, CLASSES, (3, 32, 32)))
    return root


def register(monkeypatch: pytest.MonkeyPatch, **sources: Source) -> None:
    monkeypatch.setattr(datasets, "DATASETS", {**DATASETS, **sources})


def files_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def unpack(archive: Path, folder: Path) -> None:
    """As `TarFile.extractall`, whose argument `filter` the first releases of 3.11 don't have."""
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            content = tar.extractfile(member)
            assert content is not None
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


# The sealed test set


@pytest.mark.parametrize("damage", ["remove", "corrupt"])
@pytest.mark.parametrize(
    ("layout", "name", "test_files"),
    [
        ("mnist", "mnist", "MNIST/raw/t10k-*"),
        ("svhn", "svhn", "test_32x32.mat"),
        ("cifar", "cifar10", "cifar-10-batches-py/test_batch"),
    ],
)
def test_a_search_needs_no_test_file(
    layout: str, name: str, test_files: str, damage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(layout)
    if layout == "cifar":  # one archive holds both parts; as unpacked, each batch is a file of its own
        unpack(root / "cifar-10-python.tar.gz", root)
        (root / "cifar-10-python.tar.gz").unlink()
    files = list(root.glob(test_files))
    assert files
    for file in files:
        file.unlink() if damage == "remove" else file.write_bytes(b"damaged")
    spec = DataSpec(name=name, root=root)
    assert problems_of_data(spec) == []
    assert len(load(spec, 1, CPU).images) == 60
    with pytest.raises(DataError):
        load_test(spec, CPU)
    assert bool(source_of(spec).problems(spec, "test")) is (damage == "remove")


# torchvision's layouts


@pytest.mark.parametrize(
    ("layout", "name", "test_images"),
    [("mnist", "mnist", 20), ("cifar", "cifar10", 12), ("svhn", "svhn", 20)],
)
def test_both_parts_of_a_dataset_are_read(
    layout: str, name: str, test_images: int, request: pytest.FixtureRequest
) -> None:
    spec = DataSpec(name=name, root=request.getfixturevalue(layout))
    data, test, summary = load(spec, 1, CPU), load_test(spec, CPU), describe(spec)
    assert (summary.non_test_images, summary.classes, summary.shape) == (60, CLASSES, data.input_shape)
    assert (summary.train_images, summary.validation_images) == (48, 12)
    assert (len(data.training_indices), len(data.validation_indices)) == (48, 12)
    assert data.classes == CLASSES
    assert sum(data.class_counts) == 48
    assert test.images.shape == (test_images, *data.input_shape)
    assert set(test.labels.tolist()) == {0, 1, 2}


def test_mnist_pixels_and_labels_stay_together(mnist: Path) -> None:
    data = load(DataSpec(name="mnist", root=mnist), 1, CPU)
    assert np.array_equal(data.images[:, 0], pixels(60, 28, 28, seed=60))
    assert data.labels.tolist() == [number % CLASSES for number in range(60)]


def test_cifar_images_are_channels_first(cifar: Path) -> None:
    data = load(DataSpec(name="cifar10", root=cifar), 1, CPU)
    assert np.array_equal(data.images[12:24].reshape(12, -1), pixels(12, 3 * 32 * 32, seed=1))


def test_svhn_images_are_channels_first_and_10_is_0(svhn: Path) -> None:
    data = load(DataSpec(name="svhn", root=svhn), 1, CPU)
    assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels(60, 32, 32, 3))
    assert data.labels[:4].tolist() == [0, 1, 2, 0]


def test_packed_files_are_unpacked_into_the_cache_and_only_those_needed(mnist: Path) -> None:
    before = files_in(mnist)
    load(DataSpec(name="mnist", root=mnist), 1, CPU)
    assert files_in(mnist) == before
    assert files_in(cache_folder()) == {
        "MNIST/raw/train-images-idx3-ubyte",
        "MNIST/raw/train-labels-idx1-ubyte",
    }


def test_the_cache_is_used_again(
    forget_data: Callable[[], None], mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(name="mnist", root=mnist)
    load(spec, 1, CPU)
    forget_data()

    def again(*_: object) -> None:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(torchvision_datasets().utils, "extract_archive", again)
    assert len(load(spec, 1, CPU).images) == 60


def test_a_cache_does_not_stand_in_for_a_root_without_files(mnist: Path, tmp_path: Path) -> None:
    load(DataSpec(name="mnist", root=mnist), 1, CPU)
    with pytest.raises(DataError, match="is not in"):
        load(DataSpec(name="mnist", root=tmp_path / "elsewhere"), 1, CPU)


def test_many_may_unpack_at_once(mnist: Path) -> None:
    source = datasets.DATASETS["mnist"]
    spec = DataSpec(name="mnist", root=mnist)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: source.read(spec, "search"), range(24)))
    assert all(np.array_equal(one.images, found[0].images) for one in found)
    assert not [path for path in cache_folder().iterdir() if path.name.startswith(".")]


def test_a_packed_file_that_is_not_the_published_one_is_refused(mnist: Path) -> None:
    archive = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match="MD5"):
        load(DataSpec(name="mnist", root=mnist), 1, CPU)
    assert files_in(cache_folder()) == set()


@pytest.mark.parametrize("content", [b"", b"damaged", struct.pack(">4i", 2051, 7, 28, 28) + bytes(7 * 784)])
def test_unpacked_files_that_are_not_the_dataset_are_refused(
    forget_data: Callable[[], None], mnist: Path, content: bytes
) -> None:
    spec = DataSpec(name="mnist", root=mnist)
    load(spec, 1, CPU)
    forget_data()
    (cache_folder() / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.root: MNIST .* can't be read"):
        load(spec, 1, CPU)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"])
def test_missing_files_are_a_problem_with_place_and_remedy(name: str, tmp_path: Path) -> None:
    spec = DataSpec(name=name, root=tmp_path / "empty")
    (problem,) = problems_of_data(spec)
    assert problem.key == "data.root"
    assert str(tmp_path / "empty") in problem.message
    assert "download" in problem.remedy
    with pytest.raises(DataError) as raised:
        load(spec, 1, CPU)
    assert raised.value.problem == problem
    assert problems_of_data(replace(spec, download=True)) == []


# Downloading


def test_a_download_lands_in_the_root_whole(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def retrieve(url: str, filename: str, *_: object) -> None:
        asked.append(Path(url).name)
        shutil.copy(mnist / "MNIST" / "raw" / Path(url).name, filename)

    utils = torchvision_datasets().utils
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    spec = DataSpec(name="mnist", root=tmp_path / "new", download=True)
    assert problems_of_data(spec) == []
    assert len(load(spec, 1, CPU).images) == 60
    assert asked == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    assert files_in(tmp_path / "new") == {
        f"MNIST/raw/train-{name}-ubyte{suffix}"
        for name in ("images-idx3", "labels-idx1")
        for suffix in ("", ".gz")
    }


def test_a_download_that_fails_is_said_and_leaves_nothing(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=r"data\.download: MNIST could not be downloaded"):
        load(DataSpec(name="mnist", root=tmp_path / "new", download=True), 1, CPU)
    assert files_in(tmp_path / "new") == set()


def test_download_is_not_tried_where_files_are(mnist: Path) -> None:
    """The fixture makes any use of the network fail."""
    assert len(load(DataSpec(name="mnist", root=mnist, download=True), 1, CPU).images) == 60


def test_a_root_that_can_not_be_written_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (problem,) = problems_of_data(DataSpec(name="svhn", root=tmp_path / "file" / "data", download=True))
    assert "can't be written to" in problem.message


# The real ones


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "mean", "std"), [("fashion_mnist", 0.2860, 0.3530), ("mnist", 0.1307, 0.3081)]
)
def test_real_data_are_read_from_a_read_only_root(
    name: str, mean: float, std: float, shared_data: Path
) -> None:
    spec = DataSpec(name=name, root=shared_data)
    assert problems_of_data(spec) == source_of(spec).problems(spec, "test") == []
    data, test = load(spec, 1, CPU), load_test(spec, CPU)
    assert data.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert data.mean.item() / 255 == pytest.approx(mean, abs=2e-3)
    assert data.std.item() / 255 == pytest.approx(std, abs=2e-3)
    assert torch.bincount(data.labels[data.validation_indices]).min() > 1000
