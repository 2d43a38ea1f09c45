"""Random words of a recorded step by one kernel, where a GPU would else run a hundred small operations.

Shapes: B images, C blocks of four words per image.

The words are those of `objectives.chance`, to the bit, or the kernel isn't taken: it is tried once for each
device. Triton has Philox itself; it comes with torch's builds for CUDA.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from objectives.chance import MASK, Words, WordsOf, words_of
from objectives.fused.triton_there import has_triton

logger = logging.getLogger(__name__)

AT_ONCE = 256
"""Blocks of four words that one program of the grid computes."""


def words_by_triton(counter_3C: Tensor, places_B: Tensor, keys_B2: Tensor) -> Words:
    """`WordsOf`, by a kernel in Triton's language."""
    from objectives.fused import triton_kernels as kernels

    words_4BC = places_B.new_empty((4, len(places_B), counter_3C.shape[1]))
    numbers, blocks = words_4BC[0].numel(), words_4BC.shape[2]
    given = counter_3C.contiguous(), places_B.contiguous(), keys_B2.contiguous()
    with torch.cuda.device_of(places_B):
        kernels.philox_words[-(-numbers // AT_ONCE),](*given, words_4BC, numbers, blocks, BLOCK=AT_ONCE)
    first, second, third, fourth = words_4BC.unbind(0)
    return first, second, third, fourth


@cache
def words_for(device: torch.device) -> WordsOf:
    """What finds the words of recorded steps on a device; the first time it waits for it."""
    if device.type != "cuda" or not has_triton():
        return words_of
    try:
        same = gives_the_same(words_by_triton, device)
    except Exception as error:  # noqa: BLE001 (compilers fail in many ways; a step can do without)
        why = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        logger.warning("random words take longer, for Triton can't be used for them: %s", why)
        return words_of
    if not same:
        logger.warning("random words take longer, for Triton gives others")
    return words_by_triton if same else words_of


def gives_the_same(found: WordsOf, device: torch.device) -> bool:
    """Whether words are those that operations of torch give, for counters and keys with all of their bits."""
    step = MASK // 97
    counter_3C = torch.arange(3 * 5, device=device).view(3, 5) * step
    places_B = torch.arange(67, device=device) * 3
    keys_B2 = MASK - torch.arange(2 * 67, device=device).view(67, 2) * (step // 2)
    pairs = zip(found(counter_3C, places_B, keys_B2), words_of(counter_3C, places_B, keys_B2), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)
