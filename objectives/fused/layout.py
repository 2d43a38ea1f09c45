"""Where each parameter of an architecture lies in a row of numbers.

Shapes: P parameters of a trial, R rows, T trials (slots).

All parameters of a trial lie in one row, so that an optimizer's step is a few operations whatever the
number of layers. Weights (two or more dimensions) come first, because those alone are regularised; kernels
lie channels last, as convolutions want them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALL = 4096
"""Numbers of a parameter, below which it is cheaper to copy it than to handle it by itself."""


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter: its name in the model, and its place in a row."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape in the row: kernels, OIHW, are stored as OHWI."""
        if len(self.shape) != 4:
            return self.shape
        out, channels, height, width = self.shape
        return out, height, width, channels

    def of(self, rows_RP: Tensor) -> Tensor:
        """The part of every row, as stored; a view."""
        return rows_RP.narrow(1, self.start, self.size).view(len(rows_RP), *self.stored)


def restored(stored: Tensor, leading: int = 0) -> Tensor:
    """A parameter in the model's own order of dimensions, after `leading` others; a view."""
    return stored.movedim(-1, leading + 1) if stored.ndim - leading == 4 else stored


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of an architecture's row. They are in the row's order, not the model's."""

    parts: tuple[Part, ...]
    weights: int
    """Numbers at the start of a row that a regulariser may touch."""
    size: int
    """P."""

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout for a model, all of whose parameters are trained."""
        named = in_row_order(model)
        parts = []
        start = weights = 0
        for name, parameter in named:
            parts.append(Part(name, tuple(parameter.shape), start))
            start += parameter.numel()
            weights = start if parameter.ndim >= 2 else weights
        return cls(tuple(parts), weights, start)

    def row(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """One row P from a tensor per part, in the parts' order, each in the model's shape."""
        flat = [(t.movedim(1, -1) if t.ndim == 4 else t).reshape(-1).to(dtype) for t in tensors]
        return torch.cat([t.detach() for t in flat])

    def row_of(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """The parameters of a model of this architecture, whatever it calls them."""
        return self.row([parameter for _, parameter in in_row_order(model)], dtype)

    def tensors(self, row_P: Tensor) -> Iterator[Tensor]:
        """The inverse of `row`: views of a row, in the model's shapes."""
        for part in self.parts:
            yield restored(part.of(row_P[None])[0])

    def rows_of(self, stack_TP: Tensor, slot_R: Tensor) -> dict[str, Tensor]:
        """Each parameter of the slots that rows belong to, as stored, with the rows in front; copies."""
        return {
            part.name: stack_TP.narrow(1, part.start, part.size)
            .index_select(0, slot_R)
            .view(len(slot_R), *part.stored)
            for part in self.parts
        }

    def pieces(self, rows: Mapping[str, Tensor]) -> list[tuple[int, Tensor]]:
        """The inverse of `rows_of`: where in RP numbers start, and these numbers, R × so many.

        Large parameters are pieces of their own and not copied; small ones that adjoin are one piece.
        """
        found: list[tuple[int, Tensor]] = []
        for small, parts in itertools.groupby(self.parts, lambda part: part.size < SMALL):
            flat = [(part.start, rows[part.name].reshape(-1, part.size)) for part in parts]
            found += [(flat[0][0], torch.cat([piece for _, piece in flat], dim=1))] if small else flat
        return found


def in_row_order(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A model's parameters in the order of its layout's parts, which does not depend on their names."""
    return sorted(model.named_parameters(), key=lambda item: item[1].ndim < 2)  # a stable sort
