"""A user's images in folders, with or without a test part of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objectives import datasets
from objectives.base import DataSpec
from objectives.datasets import describe, load, load_test, problems_of_data
from objectives.sources import DataError

pytestmark = pytest.mark.usefixtures("forget_data")

CPU = torch.device("cpu")


def folder(root: Path, parts: tuple[str, ...] = ("train", "test"), images: int = 10) -> Path:
    """An image folder; the colour of an image says its class, its brightness its part."""
    for level, part in enumerate(parts):
        for colour, name in enumerate(("red", "green", "blue")):
            place = root / part / name
            place.mkdir(parents=True)
            for number in range(images):
                image = np.zeros((12, 16, 3), np.uint8)
                image[..., colour] = 200 - 100 * level + number
                Image.fromarray(image).save(place / f"{number:03}.png")
            (place / "notes.txt").write_text("not an image")
    return root


def test_an_image_folder_with_a_test_part(tmp_path: Path) -> None:
    spec = DataSpec(name="image_folder", root=folder(tmp_path / "root"), image_size=8)
    data, test = load(spec, 1, CPU), load_test(spec, CPU)
    assert problems_of_data(spec) == []
    assert data.images.shape == (30, 3, 8, 8)
    assert test.images.shape == (30, 3, 8, 8)
    # Classes by name: blue, green, red; the colour's channel is the brightest.
    assert torch.equal(2 - data.images.float().mean((2, 3)).argmax(1), data.labels)
    assert data.images.amax() >= 200
    assert test.images.amax() < 150
    assert describe(spec) == datasets.DataSummary("image_folder", 3, (3, 8, 8), 30, 24, 6)


@pytest.mark.parametrize("parts", [("",), ("train",)])
def test_an_image_folder_without_a_test_part_has_some_files_sealed(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    spec = DataSpec(name="image_folder", root=folder(tmp_path / "root", parts), image_size=8)
    data, test = load(spec, 1, CPU), load_test(spec, CPU)
    assert (len(data.images), len(test.images)) == (24, 6)
    assert torch.bincount(test.labels).tolist() == [2, 2, 2]
    searched = {image.numpy().tobytes() for image in data.images}
    assert not searched & {image.numpy().tobytes() for image in test.images}
    assert describe(spec).non_test_images == 24


@pytest.mark.parametrize(("parts", "images"), [(("",), 24), (("train",), 24), (("train", "test"), 30)])
def test_sealed_files_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], images: int
) -> None:
    spec = DataSpec(name="image_folder", root=folder(tmp_path / "root", parts), image_size=8)
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: (opened.append(str(path)), real(path))[1])
    assert problems_of_data(spec) == []
    describe(spec)
    assert opened == []
    load(spec, 1, CPU)
    searched = set(opened)
    opened.clear()
    load_test(spec, CPU)
    assert opened
    assert len(searched) == images
    assert not searched & set(opened)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "root")
    (root / "train" / "red" / "004.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"red/004\.png can't be read"):
        load(DataSpec(name="image_folder", root=root, image_size=8), 1, CPU)


def test_test_classes_must_be_known(tmp_path: Path) -> None:
    root = folder(tmp_path / "root")
    (root / "test" / "red").rename(root / "test" / "violet")
    with pytest.raises(DataError, match="violet"):
        load_test(DataSpec(name="image_folder", root=root, image_size=8), CPU)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "holds 0 classes"),
        (lambda root: (root / "one").mkdir(parents=True), "holds 0 classes"),
        (lambda root: folder(root, ("",), images=1), "can't be split"),
    ],
)
def test_what_is_wrong_with_an_image_folder_is_said(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "root")
    (problem,) = problems_of_data(DataSpec(name="image_folder", root=tmp_path / "root", image_size=8))
    assert words in problem.message


def test_channels_are_normalised_each_by_its_own(tmp_path: Path) -> None:
    spec = DataSpec(name="image_folder", root=folder(tmp_path / "root"), image_size=8)
    data = load(spec, 1, CPU)
    chosen = data.images[data.training_indices].double()
    torch.testing.assert_close(data.mean.double(), chosen.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(data.std.double(), chosen.std((0, 2, 3), correction=0), rtol=1e-6, atol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (4, 4), (0, number * 20, 7)).save(tmp_path / name / f"{number}.png")
    data = load(DataSpec(name="image_folder", root=tmp_path, image_size=4), 1, CPU)
    assert data.std[0] == data.std[2] == 1
    assert data.normalise(data.images).isfinite().all()


def test_sixteen_bits_of_grey_keep_their_range(tmp_path: Path) -> None:
    grey_HW = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(grey_HW).save(tmp_path / name / f"{number}.png")
    data = load(DataSpec(name="image_folder", root=tmp_path, image_size=8), 1, CPU)
    assert np.array_equal(data.images[0, 0].numpy(), grey_HW >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
            options = {"transparency": bytes([9] * 256)} if mode == "P" else {}
            image.save(tmp_path / name / f"{number}.{'tif' if mode == 'CMYK' else 'png'}", **options)
    data = load(DataSpec(name="image_folder", root=tmp_path, image_size=4), 1, CPU)
    assert data.images.shape == (16, 3, 4, 4)
    assert (data.images == 255).all()


@pytest.mark.parametrize(
    ("pixels", "words"), [(np.float32(0.5), "fractions"), (np.int32(70_000), "more than 16 bits")]
)
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, pixels: object, words: str) -> None:
    root = folder(tmp_path / "root")
    Image.fromarray(np.full((4, 4), pixels)).save(root / "train" / "red" / "a.tif")
    with pytest.raises(DataError, match=words):
        load(DataSpec(name="image_folder", root=root, image_size=8), 1, CPU)


def test_whatever_pillow_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise TypeError("'float' object cannot be interpreted as an integer")  # as damaged TIFFs have it

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match=r"000\.png can't be read"):
        load(DataSpec(name="image_folder", root=folder(tmp_path / "root"), image_size=8), 1, CPU)


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    root = folder(tmp_path / "root")
    (root / "train" / "red" / "._000.png").write_bytes(b"of macOS")
    (root / "train" / "red" / "folder.png").mkdir()
    for place in (root / "train" / ".checkpoints", root / "train" / "red" / ".checkpoints"):
        place.mkdir()
        Image.new("RGB", (4, 4)).save(place / "copy.png")
    spec = DataSpec(name="image_folder", root=root, image_size=8)
    assert (describe(spec).classes, describe(spec).non_test_images) == (3, 30)
    assert len(load(spec, 1, CPU).images) == 30


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "root")
    (root / "train" / "red" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"lost\.png can't be read"):
        load(DataSpec(name="image_folder", root=root, image_size=8), 1, CPU)


def test_a_test_folder_among_the_classes_is_never_searched(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", ("", "test"))
    (problem,) = problems_of_data(DataSpec(name="image_folder", root=root, image_size=8))
    assert "no train folder" in problem.message
    with pytest.raises(DataError, match="no train folder"):
        load(DataSpec(name="image_folder", root=root, image_size=8), 1, CPU)


def uneven(root: Path, counts: tuple[int, ...]) -> Path:
    """An image folder of one-coloured images, so many per class."""
    for label, count in enumerate(counts):
        (root / str(label)).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (2, 2), (40 * label, number, 0)).save(root / str(label) / f"{number:03}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "limit", "words"),
    [
        ((100, 100, 4), 20, "leaves no image of class 2"),
        ((100, 4, 100), 20, "leaves no image of class 1"),
        ((100, 100, 7), 30, "can't be split 24 to 6"),
    ],
)
def test_too_few_images_of_a_class_are_a_problem_before_a_search(
    tmp_path: Path, counts: tuple[int, ...], limit: int, words: str
) -> None:
    spec = DataSpec(name="image_folder", root=uneven(tmp_path, counts), image_size=2, limit=limit)
    (problem,) = problems_of_data(spec)
    assert words in problem.message
    with pytest.raises(DataError, match=words):
        load(spec, 1, CPU)
    assert problems_of_data(dataclasses.replace(spec, limit=None)) == []
