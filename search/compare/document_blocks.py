"""Blocks of `report.json` made of the analysis's values: the forms of `report_blocks`, and what they hold."""

from __future__ import annotations

import math
from dataclasses import asdict

from search.compare import report_blocks as blocks
from search.compare.outcomes import Counts
from search.compare.statistics.anytime import Band, StepCurve
from search.compare.statistics.base import FloatArray, Interval
from search.compare.statistics.intervals import Distribution
from search.compare.statistics.targets import Ratio, SpeedUp
from search.compare.tables import Table, Value


def table_form(table: Table) -> blocks.TableForm:
    """A table as JSON has it."""
    return blocks.TableForm(
        key=table.key,
        title=table.title,
        caption=table.caption,
        exploratory=table.exploratory,
        columns=tuple(blocks.ColumnForm(**asdict(column)) for column in table.columns),
        values=tuple(tuple(_cell(cell.value) for cell in row) for row in table.rows),
        texts=tuple(tuple(cell.text for cell in row) for row in table.rows),
    )


def _cell(value: Value) -> Value:
    """A table's value; null for NaN or infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counts_form(counts: Counts) -> blocks.CountsForm:
    """What became of trials."""
    return blocks.CountsForm(
        total=counts.total,
        complete=counts.complete,
        pruned=counts.pruned,
        diverged=counts.diverged,
        failed=counts.failed,
        running=counts.running,
        waiting=counts.waiting,
        retried_attempts=counts.retried,
    )


def interval_form(interval: Interval | None) -> blocks.IntervalForm | None:
    """An estimate with its interval; None for none."""
    return None if interval is None else blocks.IntervalForm(**asdict(interval))


def distribution_form(found: Distribution | None) -> blocks.DistributionForm | None:
    """Values over replicates; None for none."""
    return None if found is None else blocks.DistributionForm.model_validate(asdict(found))


def curve_form(replicate: int, curve: StepCurve, area: float | None) -> blocks.CurveForm:
    """A study's best so far; `area` is that under it."""
    return blocks.CurveForm(
        replicate=replicate,
        positions=numbers(curve.positions),
        values=numbers(curve.values),
        end=curve.end,
        area=area,
    )


def band_form(band: Band) -> blocks.BandForm:
    """A median over replicates, with what lies around it."""
    return blocks.BandForm(
        positions=numbers(band.axis),
        median=numbers(band.median),
        low_quartile=numbers(band.low_quartile),
        high_quartile=numbers(band.high_quartile),
        low=None if band.low is None else numbers(band.low),
        high=None if band.high is None else numbers(band.high),
        level=band.level,
    )


def numbers(array: FloatArray) -> tuple[float, ...]:
    """The elements of an array."""
    return tuple(array.tolist())


def speed_up_form(found: SpeedUp) -> blocks.SpeedUpForm:
    """How many random trials a trial is worth, with its interval."""
    return blocks.SpeedUpForm(
        ratio=_ratio(found.ratio),
        low=None if found.low is None else _ratio(found.low),
        high=None if found.high is None else _ratio(found.high),
        level=found.level,
        text=str(found),
    )


def _ratio(found: Ratio) -> blocks.CensoredForm:
    return blocks.CensoredForm(
        value=found.value, censored=found.bound == "at_least", bound=found.bound, text=str(found)
    )
