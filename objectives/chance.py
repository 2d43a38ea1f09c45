"""Random numbers that are a function of what they are for: no generator, no order, no state.

Shapes: B images, C blocks of four words per image, F elements of an image.

A trial's seed and an epoch are a key; an image's place in the epoch's order, a purpose, and the number of a
block among an image's for this purpose are a counter; Philox makes four words of 32 bits from both. So it
does not matter which images are drawn for together, in which order, how a batch is cut, beside which other
trials, or on which device: a CPU and a GPU give the same words. Keys and counters are tensors that broadcast,
or plain numbers, so that the images of many trials are drawn for at once, inside recorded work.

Reference: Salmon, Moraes, Dror & Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3*, Philox4x32-10.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from objectives.base import derive_seed
from objectives.devices import moved

Word: TypeAlias = Tensor | int
"""From 0 to 2³² − 1; tensors are int64."""

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

Purpose: TypeAlias = tuple[str | int, ...]
"""What numbers are for, such as ``("augment", "flip")``: every purpose has a stream of its own."""

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
"""By which the key grows from round to round: the golden ratio, and √3 − 1."""

BITS = 32
MASK = 2**BITS - 1
PRECISION = 24
"""Bits of a number in [0, 1): as many as float32 holds exactly."""

AHEAD = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Blocks that are drawn at once for images that are yet to come: what fits into a core's cache, or what is
worth a GPU's calls."""


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> Words:
    """Four words from the four of a counter and the two of a key."""
    c0, c1, c2, c3 = counter
    for k0, k1 in zip(*map(_growing, key, WEYL), strict=True):
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
    first, second, third, fourth = (torch.as_tensor(word) for word in (c0, c1, c2, c3))
    return first, second, third, fourth


def _growing(word: Word, step: int) -> Sequence[Word]:
    """A word of the key in each round; in few operations, for a recording of many trials has room for few."""
    if isinstance(word, int):
        return [(word + turn * step) & MASK for turn in range(ROUNDS)]
    steps = torch.arange(0, ROUNDS * step, step, device=word.device)
    words: tuple[Tensor, ...] = ((word[..., None] + steps) & MASK).unbind(-1)
    return words


def _product(word: Word, factor: int) -> tuple[Word, Word]:
    """The upper and the lower half of the 64 bits of a product.

    A signed number of 64 bits can't hold it: so it is that with the factor less 2³², and the word is added
    to the upper half. Both factors are above 2³¹.
    """
    product = word * (factor - 2**BITS)
    return (product >> BITS) + word, product & MASK


def uniform(words: Tensor) -> Tensor:
    """Numbers in [0, 1), float32, multiples of 2⁻²⁴."""
    return (words >> (BITS - PRECISION)).to(torch.float32) * 2.0**-PRECISION


def below(words: Tensor, bound: Word) -> Tensor:
    """Whole numbers from 0 to `bound` − 1, under 2³¹; no bias but of bound/2³²."""
    return (words * bound) >> BITS


def key_of(seed: int, epoch: int) -> tuple[int, int]:
    """The key of a trial's epoch, counted from 1."""
    return _halves(derive_seed(seed, "chance", epoch))


@cache
def stream(purpose: Purpose) -> tuple[int, int]:
    """The part of a counter that says what numbers are for."""
    return _halves(derive_seed("chance", *purpose))


def _halves(number: int) -> tuple[int, int]:
    return number & MASK, number >> BITS


@dataclass(frozen=True, slots=True)
class Numbers:
    """Four random numbers for each image."""

    words: Tensor
    """4B."""

    def uniform(self, which: int) -> Tensor:
        """B numbers in [0, 1), float32: the first, second, third or fourth of each image, counted from 0."""
        return uniform(self.words[which])

    def below(self, which: int, bound: Word) -> Tensor:
        """B whole numbers from 0 to `bound` − 1; the bound may be another for each image."""
        return below(self.words[which], bound)


def numbers(purpose: Purpose, places_B: Tensor, key: tuple[Word, Word]) -> Numbers:
    """Of images, given their places in the epoch; a tensor in the key holds a word for each."""
    return Numbers(torch.stack(philox((0, places_B, *stream(purpose)), key)))


def elements(purpose: Purpose, places_B: Tensor, key: tuple[Word, Word], count: int) -> Tensor:
    """A word BF for each of `count` elements of each image."""
    blocks_1C = torch.arange(-(-count // 4), device=places_B.device)[None]
    of_image = tuple(word[:, None] if isinstance(word, Tensor) else word for word in key)
    words = philox((blocks_1C, places_B[:, None], *stream(purpose)), (of_image[0], of_image[1]))
    return _in_order(words, count)


def _in_order(words: Words, count: int) -> Tensor:
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def kept(words: Tensor, share: float | Tensor, dtype: torch.dtype) -> Tensor:
    """What elements are multiplied by that are dropped with probability `share`: 0, or 1/(1 − share).

    A tensor of shares is float64. What is never dropped is multiplied by 1.
    """
    if not isinstance(share, Tensor):
        share = torch.full((), share, dtype=torch.float64, device=words.device)
    scale = (1 / (1 - share)).to(dtype)
    return torch.where(uniform(words) < share.to(torch.float32), 0.0, scale)


class Epoch:
    """One trial's numbers in an epoch of so many images, in any order; those of coming images ahead."""

    def __init__(self, seed: int, epoch: int, images: int, device: torch.device) -> None:
        self.key = key_of(seed, epoch)
        self._images, self._device = images, device
        self._ahead: dict[Hashable, tuple[int, Tensor]] = {}
        """The place of the first image, and what was drawn for it and those after it."""

    def numbers(self, purpose: Purpose, first: int, count: int) -> Numbers:
        """Of so many images from the place `first` on."""

        def draw(places_B: Tensor) -> Tensor:
            return numbers(purpose, places_B, self.key).words.T

        return Numbers(self._drawn(purpose, first, count, 1, draw).T)

    def kept(
        self, layer: int, share: float, features: int, dtype: torch.dtype, *, first: int, count: int
    ) -> Tensor:
        """BF: what the dropout layer of this number multiplies such images by."""
        purpose = dropout(layer)

        def draw(places_B: Tensor) -> Tensor:
            return kept(elements(purpose, places_B, self.key, features), share, dtype)

        blocks = -(-features // 4)
        return self._drawn((purpose, share, features, dtype), first, count, blocks, draw)

    def _drawn(
        self, what: Hashable, first: int, count: int, blocks: int, draw: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A part of what there is, or will be now; `blocks` are those of an image."""
        start, drawn_BX = self._ahead.get(what, (0, None))
        if drawn_BX is None or not start <= first <= first + count <= start + len(drawn_BX):
            ahead = AHEAD.get(self._device.type, AHEAD["cpu"]) // blocks
            last = first + max(count, min(ahead, self._images - first))
            start, drawn_BX = first, draw(torch.arange(first, last, device=self._device))
            self._ahead[what] = start, drawn_BX
        return drawn_BX[first - start : first - start + count]


def dropout(layer: int) -> Purpose:
    """Of the dropout layer of this number, in the order in which they run."""
    return "dropout", layer


WordsOf: TypeAlias = Callable[[Tensor, Tensor, Tensor], Words]
"""Four words BC of images, given the rest of the counter for each block, 3C, the images' places, B, and the
keys of their trials, B2."""


def words_of(counter_3C: Tensor, places_B: Tensor, keys_B2: Tensor) -> Words:
    """`WordsOf`, in operations of torch."""
    block_C, low_C, high_C = counter_3C
    return philox((block_C, places_B[:, None], low_C, high_C), (keys_B2[:, :1], keys_B2[:, 1:]))


class Columns:
    """What is drawn for the images of a recorded step, whosever they are, in one go.

    Numbers for each of some purposes; and words for each of some elements of an image. `by` finds the words.
    """

    def __init__(
        self,
        single: Sequence[Purpose],
        many: Mapping[Purpose, int],
        device: torch.device,
        *,
        by: WordsOf = words_of,
    ) -> None:
        self._words_of = by
        blocks = [(purpose, 0) for purpose in single]
        blocks += [(purpose, block) for purpose, size in many.items() for block in range(-(-size // 4))]
        self._single, self._many = tuple(single), dict(many)
        table = [(block, *stream(purpose)) for purpose, block in blocks]
        self._counter = moved(torch.tensor(table, dtype=torch.long).view(-1, 3).T.contiguous(), device)

    def draw(self, places_B: Tensor, keys_T2: Tensor, trials_B: Tensor) -> Drawn:
        """Of images, given their places in their epochs, trials' keys, and which trial is whose."""
        if not self._counter.numel():
            return Drawn({}, {})
        words = self._words_of(self._counter, places_B, keys_T2.index_select(0, trials_B))
        count = len(self._single)
        found = torch.stack([word[:, :count].T for word in words])
        drawn = Drawn({purpose: Numbers(found[:, at]) for at, purpose in enumerate(self._single)}, {})
        for purpose, size in self._many.items():
            end = count + -(-size // 4)
            part = tuple(word[:, count:end] for word in words)
            drawn.words[purpose] = torch.stack(part, dim=-1).flatten(1)[:, :size]
            count = end
        return drawn


@dataclass(frozen=True, slots=True)
class Drawn:
    """What `Columns` drew."""

    numbers: Mapping[Purpose, Numbers]
    words: dict[Purpose, Tensor]
    """BF."""
