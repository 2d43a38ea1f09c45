"""Where random words come from a kernel in Triton's language; what it computes is tested with the others
(`test_triton_convolutions.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from objectives.chance import Words, words_of
from objectives.fused import triton_chance
from objectives.fused.triton_chance import gives_the_same, words_by_triton, words_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    words_for.cache_clear()
    yield
    words_for.cache_clear()


def test_a_gpu_takes_the_kernel_if_it_gives_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(triton_chance, "has_triton", lambda: True)
    monkeypatch.setattr(triton_chance, "gives_the_same", lambda *given: tried.append(given) or True)
    assert words_for(GPU) is words_for(GPU) is words_by_triton
    assert tried == [(words_by_triton, GPU)]
    assert words_for(CPU) is words_of


def test_a_gpu_without_triton_does_it_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_chance, "has_triton", lambda: False)
    assert words_for(GPU) is words_of


@pytest.mark.parametrize(
    ("found", "says"),
    [(False, "gives others"), (RuntimeError("no compiler\nat all"), "RuntimeError: no compiler")],
)
def test_a_kernel_that_fails_or_gives_others_is_not_taken(
    found: bool | Exception, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def tried(*_: object) -> bool:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(triton_chance, "has_triton", lambda: True)
    monkeypatch.setattr(triton_chance, "gives_the_same", tried)
    assert words_for(GPU) is words_for(GPU) is words_of
    (line,) = caplog.messages
    assert says in line


@pytest.mark.parametrize("which", range(4))
def test_one_bit_of_any_word_is_noticed(which: int) -> None:
    def almost(counter_3C: Tensor, places_B: Tensor, keys_B2: Tensor) -> Words:
        words = [word.clone() for word in words_of(counter_3C, places_B, keys_B2)]
        words[which][-1, -1] ^= 1
        first, second, third, fourth = words
        return first, second, third, fourth

    assert gives_the_same(words_of, CPU)
    assert not gives_the_same(almost, CPU)
