"""Augmentations: what every entry keeps, and what each does to an image one can follow by eye."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objectives import registry
from objectives.augment import AUGMENTATIONS, augment, crop, cutout, flip, purpose, rotation, translation
from objectives.base import Scalar
from objectives.chance import Numbers, Purpose, key_of, numbers

EVERY = pytest.mark.parametrize("name", AUGMENTATIONS)

AMOUNTS: dict[str, Scalar] = {"flip": 0.5, "rotation": 20.0, "translation": 0.25, "crop": 2, "cutout": 3}


def of_epoch(seed: int = 0, images: int = 16) -> Callable[[Purpose], Numbers]:
    """The numbers of an epoch's first images."""
    return lambda purpose: numbers(purpose, torch.arange(images), key_of(seed, 1))


def drawn(name: str, images: int = 16) -> Numbers:
    return of_epoch(0, images)(purpose(name))


def noise(images: int = 16, channels: int = 3, height: int = 8, width: int = 10) -> Tensor:
    chance = torch.Generator().manual_seed(99)
    return torch.rand(images, channels, height, width, generator=chance) + 0.5


def test_there_is_an_amount_to_test_for_every_augmentation() -> None:
    assert AMOUNTS.keys() == AUGMENTATIONS.keys()
    for name in AUGMENTATIONS:
        option = registry.options("augment", name)["amount"]
        assert option.default == option.low == 0


@EVERY
def test_every_augmentation_keeps_shape_type_and_its_input(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            images_BCHW = noise().to(dtype).contiguous(memory_format=layout)
            before = images_BCHW.clone()
            changed_BCHW = augment(images_BCHW, {name: AMOUNTS[name]}, of_epoch())
            assert changed_BCHW.shape == images_BCHW.shape
            assert changed_BCHW.dtype == dtype
            assert changed_BCHW.isfinite().all()
            assert torch.equal(images_BCHW, before)
            assert not torch.equal(changed_BCHW, before)


@EVERY
def test_amount_zero_is_off(name: str) -> None:
    assert torch.equal(augment(noise(), {name: 0}, of_epoch()), noise())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_may_have_an_amount_of_its_own(name: str, dtype: torch.dtype) -> None:
    """It then changes to the bit as where all have that amount, and not at all where its own is 0."""
    images_BCHW = noise().to(dtype)
    images_BCHW[3] = -0.0
    amounts = [0.0, float(AMOUNTS[name]), float(AMOUNTS[name]) / 2, 1.0]
    if registry.options("augment", name)["amount"].kind == "int":
        amounts = [float(round(amount)) for amount in amounts]
    amount_B = torch.tensor(amounts, dtype=torch.float64).repeat(4)
    changed_BCHW = augment(images_BCHW, {name: amount_B}, of_epoch())
    for amount in set(amounts):
        mine_B = amount_B == amount
        alone_BCHW = augment(images_BCHW, {name: amount}, of_epoch())
        assert torch.equal(bits(changed_BCHW[mine_B]), bits(alone_BCHW[mine_B]))
    assert torch.equal(bits(changed_BCHW[::4]), bits(images_BCHW[::4]))
    assert not torch.equal(changed_BCHW, images_BCHW)


def bits(images_BCHW: Tensor) -> Tensor:
    """So that 0 and −0 differ."""
    return images_BCHW.contiguous().view(torch.int32)


@EVERY
def test_chance_comes_from_the_numbers_alone(name: str) -> None:
    amounts = {name: AMOUNTS[name]}
    first = augment(noise(), amounts, of_epoch(1))
    torch.manual_seed(5)
    process_state = torch.get_rng_state()
    assert torch.equal(augment(noise(), amounts, of_epoch(1)), first)
    assert not torch.equal(augment(noise(), amounts, of_epoch(2)), first)
    assert torch.equal(torch.get_rng_state(), process_state)


def test_every_augmentation_has_numbers_of_its_own() -> None:
    words = {name: tuple(drawn(name).words.flatten().tolist()) for name in AUGMENTATIONS}
    assert len(set(words.values())) == len(AUGMENTATIONS)


@EVERY
def test_images_change_each_in_their_own_way(name: str) -> None:
    same_BCHW = noise(1).expand(16, -1, -1, -1)
    changed_BCHW = augment(same_BCHW, {name: AMOUNTS[name]}, of_epoch())
    assert len({tuple(image.flatten().tolist()) for image in changed_BCHW}) > 1


@EVERY
def test_an_image_changes_as_it_would_among_others(name: str) -> None:
    """Its numbers are its own: neither what is beside it nor how many matters."""
    images_BCHW, amounts = noise(), {name: AMOUNTS[name]}
    together_BCHW = augment(images_BCHW, amounts, of_epoch())
    for first in range(0, 16, 3):
        places_B = torch.arange(first, min(first + 3, 16))

        def of_part(purpose: Purpose, places_B: Tensor = places_B) -> Numbers:
            return numbers(purpose, places_B, key_of(0, 1))

        part_BCHW = augment(images_BCHW[places_B], amounts, of_part)
        assert torch.equal(part_BCHW, together_BCHW[places_B])


@EVERY
def test_channels_change_together(name: str) -> None:
    grey_BCHW = noise(16, 1).expand(-1, 3, -1, -1)
    changed_BCHW = augment(grey_BCHW, {name: AMOUNTS[name]}, of_epoch())
    torch.testing.assert_close(changed_BCHW[:, 0], changed_BCHW[:, 2])


@settings(derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    images=st.integers(1, 4),
    part=st.floats(0, 1),
)
def test_any_size_and_any_amount_work(name: str, height: int, width: int, images: int, part: float) -> None:
    option = registry.options("augment", name)["amount"]
    most = option.high if option.high is not None else 30
    amount = round(part * most) if option.kind == "int" else part * most
    images_BCHW = noise(images, 1, height, width)
    changed_BCHW = augment(images_BCHW, {name: amount}, of_epoch(images=images))
    assert changed_BCHW.shape == images_BCHW.shape
    assert changed_BCHW.isfinite().all()
    assert changed_BCHW.max() <= images_BCHW.max() + 1e-6
    assert changed_BCHW.min() >= 0


def test_the_order_is_fixed() -> None:
    backwards = dict(reversed(AMOUNTS.items()))
    assert torch.equal(augment(noise(), AMOUNTS, of_epoch()), augment(noise(), backwards, of_epoch()))


def test_without_augmentations_images_are_as_they_were() -> None:
    assert torch.equal(augment(noise(), {}, of_epoch()), noise())


def test_flip_always() -> None:
    assert torch.equal(flip(noise(), drawn("flip"), amount=1.0), noise().flip(-1))


def test_flip_mirrors_about_as_many_as_asked() -> None:
    images_BCHW = noise(2000, 1, 1, 2)
    changed_B = (flip(images_BCHW, drawn("flip", 2000), amount=0.3) != images_BCHW).flatten(1).any(dim=1)
    assert changed_B.double().mean().item() == pytest.approx(0.3, abs=0.03)


def moves(changed_BCHW: Tensor, image_CHW: Tensor, reach: int) -> set[tuple[int, int]]:
    """The (down, right) shifts by which each image differs from ``image_CHW``; fails if one is no shift."""
    _, height, width = image_CHW.shape
    padded_CHW = torch.nn.functional.pad(image_CHW, [reach] * 4)
    shifted = {
        (down, right): padded_CHW[
            :, reach - down : reach - down + height, reach - right : reach - right + width
        ]
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
    }
    found = set()
    for changed_CHW in changed_BCHW:
        matches = [move for move, expected in shifted.items() if torch.equal(expected, changed_CHW)]
        assert len(matches) == 1
        found.add(matches[0])
    return found


def test_crop_is_every_shift_by_its_padding() -> None:
    image_1CHW = noise(1)
    changed_BCHW = crop(image_1CHW.expand(400, -1, -1, -1), drawn("crop", 400), amount=2)
    assert moves(changed_BCHW, image_1CHW[0], 2) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_translation_reaches_its_part_of_height_and_width() -> None:
    image_1CHW = noise(1, height=4, width=12)
    changed_BCHW = translation(image_1CHW.expand(400, -1, -1, -1), drawn("translation", 400), amount=0.25)
    assert moves(changed_BCHW, image_1CHW[0], 3) == {(y, x) for y in range(-1, 2) for x in range(-3, 4)}


def test_cutout_erases_a_square_that_may_lie_across_the_border() -> None:
    images_BCHW = noise(400)
    changed_BCHW = cutout(images_BCHW, drawn("cutout", 400), amount=3)
    erased_BHW = (changed_BCHW == 0).all(dim=1)
    assert torch.equal(changed_BCHW, torch.where(erased_BHW[:, None], 0.0, images_BCHW))
    sizes = set()
    for erased_HW in erased_BHW:
        rows, columns = erased_HW.any(dim=1).nonzero(), erased_HW.any(dim=0).nonzero()
        height, width = (int(line.max() - line.min() + 1) for line in (rows, columns))
        assert int(erased_HW.sum()) == height * width, "not a rectangle"
        sizes.add((height, width))
    assert sizes == {(height, width) for height in (2, 3) for width in (2, 3)}


def test_a_quarter_turn_moves_pixels_where_they_belong() -> None:
    """Of all angles up to ±180°, some image turns by nearly 90°: found by comparing with `rot90`."""
    image_1CHW = torch.zeros(1, 1, 5, 5)
    image_1CHW[0, 0, 0, :] = torch.arange(1.0, 6)
    turned_BCHW = rotation(image_1CHW.expand(3000, -1, -1, -1), drawn("rotation", 3000), amount=180.0)
    for quarter in (1, 2, 3):
        difference_B = (turned_BCHW - image_1CHW.rot90(quarter, (2, 3))).abs().amax(dim=(1, 2, 3))
        assert difference_B.min() < 0.1


def test_rotation_keeps_distances_in_images_that_are_not_square() -> None:
    """A disc about the centre stays one."""
    y_HW, x_HW = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")
    disc_HW = (8 - (y_HW.square() + x_HW.square()).sqrt()).clamp(0, 1)
    turned_BHW = rotation(disc_HW.expand(50, 1, -1, -1), drawn("rotation", 50), amount=180.0)[:, 0]
    assert (turned_BHW - disc_HW).abs().max() < 0.25


def test_rotation_stays_within_its_angle() -> None:
    """A pixel 10 to the right of the centre moves by at most 10·sin(15°) = 2.6 rows."""
    image_HW = torch.zeros(21, 21)
    image_HW[10, 20] = 1
    turned_BHW = rotation(image_HW.expand(500, 1, -1, -1), drawn("rotation", 500), amount=15.0)[:, 0]
    rows = turned_BHW.sum(dim=(0, 2)).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (7, 13)
