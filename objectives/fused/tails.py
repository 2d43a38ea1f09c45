"""What follows a convolution and can be computed with it: a ReLU, and a pool of the largest of 2×2.

A map out is the largest thing that a step writes. Computed apart, it is written by the convolution and read
and written again by the ReLU, read by the pool, which writes where the largest were in 64 bits, and all of
that once more backward; computed together, what the pool gives is all that is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

SIDE = 2
"""Of the pools that are computed with a convolution."""


def tail_of(children: Sequence[nn.Module], at: int) -> int:
    """What follows the convolution at a place in a sequence: 0 nothing, 1 a ReLU, `SIDE` a ReLU and a pool.

    That is also how many modules it is.
    """
    if type(children[at]) is not nn.Conv2d or [type(one) for one in children[at + 1 : at + 2]] != [nn.ReLU]:
        return 0
    return 1 + any(_is_plain_pool(one) for one in children[at + 2 : at + 3])


def tails(model: nn.Module) -> dict[str, int]:
    """Name of each convolution of a model that has one → its tail."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            named = list(module.named_children())
            for place, (key, _) in enumerate(named):
                if tail := tail_of([child for _, child in named], place):
                    found[f"{name}.{key}" if name else key] = tail
    return found


def by_operations(y: Tensor, tail: int) -> Tensor:
    """What a tail makes of a map, operation by operation."""
    y = functional.relu(y) if tail else y
    return functional.max_pool2d(y, SIDE) if tail == SIDE else y


def _is_plain_pool(module: nn.Module) -> bool:
    return (
        type(module) is nn.MaxPool2d
        and module.kernel_size in {SIDE, (SIDE, SIDE)}
        and module.stride in {SIDE, (SIDE, SIDE)}
        and module.padding in {0, (0, 0)}
        and module.dilation in {1, (1, 1)}
        and not module.ceil_mode
        and not module.return_indices
    )
