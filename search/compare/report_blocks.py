"""What `report.json` is built of: intervals, distributions, curves, tables, one form each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from search.compare.statistics.base import IntervalKind
from search.compare.statistics.targets import Bound


class Form(BaseModel):
    """Base of everything in the report: no other keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class IntervalForm(Form):
    """An estimate with its confidence interval; ends are null where there can be none."""

    estimate: float
    low: float | None
    high: float | None
    level: float
    kind: IntervalKind


class DistributionForm(Form):
    """Values over replicates."""

    n: int
    median: float
    low_quartile: float
    high_quartile: float
    mean: IntervalForm
    interquartile_mean: float
    best: float
    worst: float


class QuartilesForm(Form):
    """Values over replicates by their middle half."""

    n: int
    median: float
    low_quartile: float
    high_quartile: float


class CountsForm(Form):
    """What became of trials; the first six after `total` add up to it."""

    total: int
    complete: int
    pruned: int
    diverged: int
    failed: int
    running: int
    waiting: int
    retried_attempts: int


class EdgeForm(Form):
    """Winners on the edge of one dimension."""

    dimension: str
    low: int
    high: int
    n: int


class CurveForm(Form):
    """One study's best so far: `values[i]` from `positions[i]` on, until `end`."""

    replicate: int
    positions: tuple[float, ...]
    values: tuple[float, ...]
    end: float
    area: float | None
    """Its mean height from where the last curve of all methods begins to the common budget."""


class BandForm(Form):
    """Over replicates, at each position; the interval is the median's own."""

    positions: tuple[float, ...]
    median: tuple[float, ...]
    low_quartile: tuple[float, ...]
    high_quartile: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    level: float


class CensoredForm(Form):
    """A ratio, or a bound of it: read `bound` before `value`."""

    value: float
    censored: bool
    """Whether it is that much or more (`bound` is `at_least`)."""
    bound: Bound
    """`at_least`, `at_most`: the ratio isn't known, and `value` is only its bound."""
    text: str
    """As it is shown: `×1.8`, `at least ×4`."""


class SpeedUpForm(Form):
    """How much of random search's budget one unit of the method's is worth."""

    ratio: CensoredForm
    low: CensoredForm | None
    high: CensoredForm | None
    level: float
    text: str
    """With its interval, as it is shown."""


class ColumnForm(Form):
    """A column of a table."""

    key: str
    title: str
    align: Literal["left", "right"]


class TableForm(Form):
    """One of the report's tables, as it is shown."""

    key: str
    """Stable."""
    title: str
    caption: str
    exploratory: bool
    """Not declared before the run: to be read as a hint."""
    columns: tuple[ColumnForm, ...]
    values: tuple[tuple[str | int | float | bool | None, ...], ...]
    """Row by row, unrounded."""
    texts: tuple[tuple[str, ...], ...]
    """Row by row, as they are shown."""


class NoteForm(Form):
    """Something a reader must know before believing a number."""

    kind: str
    """Stable."""
    text: str


class EntryForm(Form):
    """One line of the protocol in words."""

    section: str
    name: str
    text: str
