"""What `report` and `run` show of a comparison in a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from search.commands.reporting import SHOWN, comparison_parts, terminal_table
from search.compare.analysis import analyse
from search.compare.report_tables import tables_of
from tests.contracts.comparison_values import comparison, drawn, lifelike


def shown(*parts: object, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False)
    for part in parts:
        console.print(part)
    return stream.getvalue()


def test_the_verdict_comes_first_then_values_pairs_and_outcomes() -> None:
    found = drawn(replicates=12, trials=50, shift={"tpe": 0.5})
    parts = comparison_parts(found, analyse(found, resamples=100))
    text = shown(*parts)
    assert text.startswith("tpe is better than random over 12 replicates by")
    titles = [str(part.title) for part in parts if isinstance(part, Table)]
    assert titles == [
        "Best validation accuracy in the search",
        "Pairs of methods, declared before the run",
        "What became of the trials, and what they cost",
    ]
    assert "tpe – random" in text
    assert "tpe better, meaningful" in text


def test_every_shown_column_is_there_and_eighty_columns_hold_them() -> None:
    found = lifelike(replicates=12, trials=60)
    tables = {table.key: table for table in tables_of(found, analyse(found, resamples=100))}
    for key, titles in SHOWN.items():
        text = shown(terminal_table(tables[key], titles), width=80)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        for title in titles.values():
            assert title in text


def test_nothing_to_show_is_said() -> None:
    found = comparison([])
    (only,) = comparison_parts(found, analyse(found, resamples=100))
    assert "nothing to compare" in shown(only)
