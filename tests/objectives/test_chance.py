"""Random numbers by counters: the published ones, evenly spread, and the same however they are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from objectives import chance
from objectives.chance import Columns, Epoch, below, dropout, elements, kept, key_of, numbers, philox, uniform

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF

KNOWN = [
    # Of Random123's `kat_vectors`, philox4x32 with 10 rounds: counter, key, result.
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_words_are_the_published_ones(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected
    tensors = [torch.tensor([word] * 3) for word in (*counter, *key)]
    words = philox((tensors[0], tensors[1], tensors[2], tensors[3]), (tensors[4], tensors[5]))
    assert torch.stack(words).tolist() == [[word] * 3 for word in expected]


def by_integers(counter: list[int], key: list[int]) -> list[int]:
    """The algorithm once more, in whole numbers without end."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & ONES,
            (first >> 32) ^ counter[3] ^ key[1],
            first & ONES,
        ]
        key = [(key[0] + 0x9E3779B9) & ONES, (key[1] + 0xBB67AE85) & ONES]
    return counter


WORD = st.integers(0, ONES)


@given(counter=st.lists(WORD, min_size=4, max_size=4), key=st.lists(WORD, min_size=2, max_size=2))
def test_no_product_is_too_large(counter: list[int], key: list[int]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    found = philox((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert [int(word) for word in found] == by_integers(counter, key)


# However they are drawn


def drawn(images: int = 64, count: int = 50, seed: int = 1, **more: int) -> Tensor:
    key = key_of(seed, more.get("epoch", 1))
    return elements(dropout(more.get("layer", 0)), torch.arange(images), key, count)


def test_an_images_numbers_depend_on_nothing_beside_it() -> None:
    whole = drawn()
    parts = [
        elements(dropout(0), places_B, key_of(1, 1), 50) for places_B in torch.arange(64).split([1, 20, 43])
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(elements(dropout(0), torch.tensor([7]), key_of(1, 1), 3), whole[7:8, :3])


@pytest.mark.parametrize("ahead", [1, 13, 1 << 14])
def test_numbers_drawn_ahead_are_those_drawn_by_themselves(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chance.AHEAD, "cpu", ahead)
    epoch = Epoch(1, 1, 64, CPU)
    for first, count in ((0, 10), (10, 30), (40, 24), (3, 5)):
        masks = epoch.kept(0, 0.3, 50, torch.float32, first=first, count=count)
        assert torch.equal(masks, kept(drawn()[first : first + count], 0.3, torch.float32))
        mine = epoch.numbers(("augment", "flip"), first, count)
        theirs = numbers(("augment", "flip"), torch.arange(first, first + count), key_of(1, 1))
        assert torch.equal(mine.words, theirs.words)


def test_what_several_trials_draw_at_once_is_what_each_draws_alone() -> None:
    purposes = [("augment", "flip"), ("augment", "crop")]
    columns = Columns(purposes, {dropout(0): 50, dropout(1): 3}, CPU)
    keys_T2 = torch.tensor([key_of(seed, 3) for seed in range(4)])
    places_B, trials_B = torch.tensor([5, 0, 9, 9, 2]), torch.tensor([0, 3, 3, 1, 1])
    found = columns.draw(places_B, keys_T2, trials_B)
    for at, (place, seed) in enumerate(zip(places_B, trials_B.tolist(), strict=True)):
        key = key_of(seed, 3)
        for purpose in purposes:
            alone = numbers(purpose, place[None], key)
            assert torch.equal(found.numbers[purpose].words[:, at : at + 1], alone.words)
        for layer, count in enumerate((50, 3)):
            alone_1F = elements(dropout(layer), place[None], key, count)
            assert torch.equal(found.words[dropout(layer)][at : at + 1], alone_1F)


def test_nothing_is_drawn_for_nothing() -> None:
    found = Columns([], {}, CPU).draw(torch.arange(3), torch.zeros(1, 2), torch.zeros(3))
    assert not found.numbers
    assert not found.words


def test_under_vmap_and_compiled_they_are_the_same() -> None:
    places_RB = torch.arange(12).view(3, 4)

    def of(places_B: Tensor) -> Tensor:
        return elements(dropout(0), places_B, key_of(1, 1), 5)

    expected = torch.stack([of(places_B) for places_B in places_RB])
    assert torch.equal(torch.vmap(of)(places_RB), expected)
    compiled = torch.compile(philox, backend="aot_eager", fullgraph=True, dynamic=False)
    given = (torch.arange(2), torch.arange(8)[:, None], torch.tensor(3), torch.tensor(ONES)), key_of(1, 1)
    for mine, theirs in zip(compiled(*given), philox(*given), strict=True):
        assert torch.equal(mine, theirs)


# How they are spread


def chi_square(counts: Tensor) -> float:
    """By how many standard deviations counts are further from even than they should be, roughly normal."""
    expected = counts.double().mean()
    degrees = counts.numel() - 1
    value = ((counts - expected).square() / expected).sum()
    return float((value - degrees) / math.sqrt(2 * degrees))


@pytest.mark.parametrize("bits", [0, 8, 16, 24])
def test_all_parts_of_words_are_even(bits: int) -> None:
    words = drawn(4000, 64)
    assert abs(chi_square(torch.bincount(((words >> bits) & 0xFF).flatten(), minlength=256))) < 4


NEIGHBOURS = {"seed": 2, "epoch": 2, "layer": 1}


@pytest.mark.parametrize("other", NEIGHBOURS)
def test_neighbouring_streams_know_nothing_of_each_other(other: str) -> None:
    mine, theirs = drawn(4000, 64), drawn(4000, 64, **{other: NEIGHBOURS[other]})
    pairs = (mine >> 28) * 16 + (theirs >> 28)
    assert abs(chi_square(torch.bincount(pairs.flatten(), minlength=256))) < 4


def test_neighbouring_images_and_elements_know_nothing_of_each_other() -> None:
    words = drawn(4000, 64) >> 28
    for pairs in (words[:-1] * 16 + words[1:], words[:, :-1] * 16 + words[:, 1:]):
        assert abs(chi_square(torch.bincount(pairs.flatten(), minlength=256))) < 4


def test_uniform_numbers_are_below_one_and_exact() -> None:
    ends = uniform(torch.tensor([0, 255, 256, ONES]))
    assert ends.dtype == torch.float32
    assert ends.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]
    assert uniform(drawn(4000, 64)).mean().item() == pytest.approx(0.5, abs=0.002)


def test_whole_numbers_reach_all_below_their_bound() -> None:
    words = drawn(2000, 64)
    assert torch.bincount(below(words, 5).flatten()).tolist() == pytest.approx(
        [words.numel() / 5] * 5, rel=0.02
    )
    bounds = torch.arange(1, 65)
    assert torch.equal(below(words, bounds)[:, 6], below(words[:, 6], 7))
    assert torch.equal(below(words, bounds).amax(0), bounds - 1)
    assert not below(words, 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_share_is_dropped_and_the_mean_kept(dtype: torch.dtype) -> None:
    words = drawn(1000, 200)
    mask = kept(words, 0.3, dtype)
    assert mask.dtype == dtype
    assert mask.unique().tolist() == [0.0, torch.tensor(1 / (1 - 0.3), dtype=torch.float64).to(dtype).item()]
    assert (mask == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    shares = torch.tensor([0.3, 0.0], dtype=torch.float64)[:, None].repeat(500, 1)
    mixed = kept(words, shares, dtype)
    assert torch.equal(mixed[::2], mask[::2])
    assert (mixed[1::2] == 1).all()
