"""Ranges that options of registry entries are annotated with: a type, and the values that make sense.

`objectives.registry` reads them, so that a value out of range is refused before anything is trained.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Interval

Positive: TypeAlias = Annotated[float, Gt(0)]
NonNegative: TypeAlias = Annotated[float, Ge(0)]
Count: TypeAlias = Annotated[int, Ge(0)]
"""A whole number of pixels, say; 0 is off."""
PositiveCount: TypeAlias = Annotated[int, Ge(1)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
"""A probability or a part of something, both ends included."""
BelowOne: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
"""A decay rate or a momentum: at 1 the past would never fade."""
InnerShare: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
"""A part of something: more than nothing and less than all."""
