"""Tables on terminals of all widths: what a row is called and its numbers can always be read."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from search import output
from search.progress import MethodProgress, progress_table

WIDTHS = (30, 40, 60, 79, 80, 81, 100, 200)


def printed(shown: RenderableType, width: int) -> list[str]:
    target = io.StringIO()
    Console(file=target, width=width, markup=False, emoji=False, highlight=False).print(shown)
    lines = target.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


def method(name: str, *, paused: int = 0) -> MethodProgress:
    return MethodProgress(
        method=name, studies=2, planned=200, complete=21, pruned=127, failed=3, running=16, waiting=0,
        epochs=12345, seconds=1.0, best=0.9653, paused=paused,
    )  # fmt: skip


@pytest.mark.parametrize("paused", [0, 117])
@pytest.mark.parametrize("width", WIDTHS)
def test_progress_shows_every_name_and_number_at_every_width(width: int, paused: int) -> None:
    methods = [method("random", paused=paused), method("winners retrained")]
    shown = words(printed(progress_table(methods, "accuracy"), width))
    wanted = ["random", "winners", "retrained", "151/200", "127", "3", "16", "12345", "0.9653"]
    assert set(wanted + [str(paused)] * bool(paused)) <= set(shown)
    assert {"trials", "pruned", "failed", "running", "epochs", "best", "accuracy"} <= set(shown)


def test_eighty_columns_hold_a_row_per_method() -> None:
    """The width that terminals have unless somebody made them wider."""
    for paused in (0, 117):
        lines = printed(progress_table([method("random", paused=paused)], "accuracy"), 80)
        (row,) = [line for line in lines if line.startswith("random")]
        assert row.endswith("0.9653")


@pytest.mark.parametrize("width", WIDTHS)
def test_long_texts_are_folded_and_numbers_whole(width: int) -> None:
    columns = ("method", "rep", "trial", "state", "value", "epochs", "seconds", "config")
    config = ", ".join(f"parameter_{number}={number}.125" for number in range(9))
    rows = [("random", 3, 1234, "complete", "0.9653", 81, "123.4", config)]
    lines = printed(
        output.table(columns, rows, numbers=("rep", "trial", "value", "epochs", "seconds")), width
    )
    assert set(columns) <= set(words(lines))
    assert {"random", "3", "1234", "complete", "0.9653", "81", "123.4"} <= set(words(lines))
    assert "".join(config.split()) in "".join(words(lines)) or width >= 60
    assert len(lines) < 30  # not a letter per line


def test_a_column_without_a_heading_names_the_lists() -> None:
    shown = output.table(("", *(f"method_{n}" for n in range(4))), [("learning_rate", "1", "2", "3", "4")])
    lines = printed(shown, 40)
    assert lines == [
        "learning_rate",
        "method_0       1",
        "method_1       2",
        "method_2       3",
        "method_3       4",
    ]


def test_lists_keep_the_title_and_are_told_apart() -> None:
    shown = output.table(
        ("name", "number"), [("a" * 20, "1" * 15), ("b" * 20, "2" * 15)], numbers=("number",)
    )
    shown.title, shown.title_justify = "what it is", "left"
    lines = printed(shown, 24)
    assert lines[0] == "what it is"
    assert "" in lines[1:]
    assert {"1" * 15, "2" * 15} <= set(words(lines))


def test_facts_are_never_taken_apart() -> None:
    lines = printed(output.facts([("name", "value " * 20)]), 20)
    assert lines[0].startswith("name  value")


@given(
    st.integers(24, 120),
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,12}", fullmatch=True), st.integers(0, 10**9)), min_size=1),
)
def test_no_number_is_ever_cut(width: int, rows: list[tuple[str, int]]) -> None:
    shown = output.table(("some name", "a long heading", "and one"), [(n, v, v) for n, v in rows],
                         numbers=("a long heading", "and one"))  # fmt: skip
    found = words(printed(shown, width))
    for name, number in rows:
        assert found.count(str(number)) >= 2
        assert name in found
