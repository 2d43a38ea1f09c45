"""The numbers behind figures and tables as Parquet files, where `shoal[parquet]` is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from search.compare.figures.base import Data
from search.compare.tables import Value
from search.formats import format_value

if TYPE_CHECKING:
    import pyarrow


def is_installed() -> bool:
    """Whether Parquet can be written here; imports nothing."""
    return find_spec("pyarrow") is not None


def write_parquet(data: Data, path: Path) -> None:
    """One file with the columns of the CSV file, typed. Raises `OSError` where it can't be written."""
    import pyarrow
    from pyarrow import parquet

    columns = zip(*data.rows, strict=True) if data.rows else ((),) * len(data.columns)
    arrays = [_array(list(values)) for values in columns]
    parquet.write_table(pyarrow.table(arrays, names=list(data.columns)), path)


def _array(values: Sequence[Value]) -> pyarrow.Array:
    """A column: booleans, whole numbers or floats where all of it is; integers among floats are floats.

    What is mixed otherwise is text, and so is a column that holds nothing.
    """
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pyarrow.array(values, pyarrow.bool_())
    # Parquet's integers have 64 bits.
    fits = all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))
    if kinds == {int} and fits:
        return pyarrow.array(values, pyarrow.int64())
    if kinds in ({float}, {int, float}):
        return pyarrow.array([None if v is None else float(v) for v in values], pyarrow.float64())
    told = [v if v is None or isinstance(v, str) else format_value(v) for v in values]
    return pyarrow.array(told, pyarrow.string())
