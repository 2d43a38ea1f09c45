"""Whether what went wrong is that memory was too short: the machine's fault, and smaller work may fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import torch

SAID = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""By torch's RuntimeErrors, in lower case, where the machine has too little memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine had too little memory for what raised this, or for what that was raised from."""
    return any(says_out_of_memory(cause) for cause in _causes(error))


def says_out_of_memory(error: BaseException) -> bool:
    """The same of one error by itself, whatever it was raised from."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in SAID)


def let_go(error: BaseException) -> None:
    """Empty the calls that an error came through, and those of what it was raised from or after.

    They hold the tensors of work that had too little memory, for as long as the error is held; less work is
    to be had in their place.
    """
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        cause = found.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            traceback.clear_frames(cause.__traceback__)
            found += [cause.__cause__, cause.__context__]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
