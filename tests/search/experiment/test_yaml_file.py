"""The reader of experiment files: what it takes for a value, what it refuses, and how fast."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.experiment.problems import SpecError
from search.experiment.yaml_file import MAX_BYTES, MAX_NODES, dotted, parse, read_file


def problems(text: str | bytes) -> list[str]:
    """Everything that is wrong with a text, whether or not anything could be made of it."""
    try:
        return [str(problem) for problem in parse(text, "file.yaml").problems]
    except SpecError as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+4", -25000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0", 0),
        ("+12", 12),
        ("-0.0", 0.0),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("0x1f", "0x1f"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ('"yes"', "yes"),
        ("full", "full"),
        ("module:function", "module:function"),
    ],
)
def test_values_are_those_of_yaml_1_2(written: str, value: object) -> None:
    document = parse(f"key: {written}\n")
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)
    assert document.problems == []


@pytest.mark.parametrize(
    "written", ["yes", "No", "on", "OFF", "010", "1_000", ".inf", "-.Inf", ".nan", "1e999"]
)
def test_what_two_yamls_read_differently_is_a_problem_with_its_line(written: str) -> None:
    document = parse(f"first: 1\nouter:\n  key: [2, {written}]\n")
    assert [problem.place for problem in document.problems] == ["outer.key[1] (line 3)"]
    assert document.problems[0].remedy
    assert document.unread == {("outer", "key", 1)}
    assert document.value["first"] == 1


def test_a_huge_number_is_refused_and_not_computed() -> None:
    assert "a number of 5000 characters" in problems("key: " + "9" * 5000)[0]


def test_repeated_keys_name_both_lines_and_all_are_listed() -> None:
    found = problems("a: 1\nb:\n  c: 1\n  c: 2\na: 2\n")
    assert found == [
        "b.c (line 4): `c` is already there in line 3 → keep one of them",
        "a (line 5): `a` is already there in line 1 → keep one of them",
    ]


def test_the_first_of_repeated_keys_is_kept() -> None:
    assert parse("a: 1\na: 2\n").value == {"a": 1}


@pytest.mark.parametrize("key", ["on", "no", "1", "1.5", "true", "null", "<<", "!!str a", "&x a"])
def test_keys_are_plain_text(key: str) -> None:
    assert len(problems(f"{key}: {{}}\n")) == 1


@pytest.mark.parametrize("key", ["[a, b]", "{a: 1}"])
def test_a_key_that_is_no_scalar_ends_the_reading(key: str) -> None:
    with pytest.raises(SpecError, match="a key must be plain text"):
        parse(f"? {key}\n: 1\n")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!float", "!own", "!!binary"])
def test_tags_are_refused_and_nothing_is_made_from_them(tag: str) -> None:
    document = parse(f"key: {tag} 'true'\n")
    assert len(document.problems) == 1
    assert document.value == {"key": "true"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "the file holds a list, not a mapping"),
        ("just text", "the file holds 'just text', not a mapping"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: [1, 2\n", "not YAML"),
        ("a:\n\t- 1\n", "not YAML"),
        ("a: 'x\n", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: \ud800", "not YAML"),
        (b"a: \xff", "not UTF-8 text (byte 3, line 1)"),
        ("a: 1".encode("utf-16"), "not UTF-8 text"),
        ("a: *nowhere", "there is no `&nowhere`"),
        ("a: &a [*a]", "stands inside itself"),
        ("a: " + "x" * MAX_BYTES, "larger than 256 KiB"),
    ],
)
def test_texts_of_which_nothing_can_be_made(text: str | bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "file.yaml")
    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse("\ufeffa: 1".encode()).value == {"a": 1}


def test_anchors_give_their_value_again() -> None:
    assert parse("a: &x [1, 2]\nb: *x\n").value == {"a": [1, 2], "b": [1, 2]}


def laughs(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n + 1}: &l{n + 1} [{', '.join([f'*l{n}'] * 9)}]" for n in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "bomb",
    [
        laughs(9),
        "[" * 200_000,
        "{" * 200_000,
        "a: {b: " * 30_000,
        "".join(" " * n + "-\n" for n in range(600)),
        "a: [" + "1," * 120_000 + "1]",
        "a: [" + "no," * 60_000 + "1]",
        "? " * 100_000,
        "&a " * 80_000,
    ],
    ids=["laughs", "lists", "mappings", "nested", "blocks", "wide", "problems", "keys", "anchors"],
)
def test_bombs_are_refused_quickly(bomb: str) -> None:
    start = time.process_time()
    with pytest.raises(SpecError):
        parse(bomb)
    assert time.process_time() - start < 1


def test_anchors_count_as_if_written_out() -> None:
    half = ", ".join(["1"] * (MAX_NODES // 2))
    assert parse(f"a: [{half}]").problems == []
    with pytest.raises(SpecError, match="values, anchors written out"):
        parse(f"a: &x [{half}]\nb: *x\n")


def test_depth_counts_what_an_anchor_holds() -> None:
    deep = "[" * 10 + "1" + "]" * 10
    assert parse(f"a: {deep}").problems == []
    with pytest.raises(SpecError, match="nested more than"):
        parse(f"a: &x {deep}\nb: [[[[[[*x]]]]]]\n")


def test_places_fall_back_on_the_line_of_what_is_around() -> None:
    document = parse("a: 1\nb:\n  c: {d: 2}\n")
    assert document.place(("b", "c", "d")) == "b.c.d (line 3)"
    assert document.place(("b", "c", "missing", 4)) == "b.c.missing[4] (line 3)"
    assert document.place(("missing",)) == "missing"
    assert dotted(("a", "x" * 500)) == "a." + "x" * 63 + "…"


def test_files_that_cannot_be_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "no such file"), (".", "is a folder"), ("pipe", "not a plain file")):
        with pytest.raises(SpecError, match=message):
            read_file(tmp_path / name)
    with pytest.raises(SpecError, match="can't be read"):
        read_file(tmp_path / ("x" * 5000))
    with pytest.raises(SpecError):
        read_file(tmp_path / "nul\0")


FRAGMENTS = st.sampled_from(
    [
        *"a:[]{},'\"|>#%~\t\x00",
        ": ",
        "- ",
        "\n",
        "  ",
        "&a ",
        "*a",
        "!t ",
        "? ",
        "---",
        "...",
        "<<",
        "1e3",
        "on",
        "\u2028",
        "é",
    ]
)


@settings(max_examples=400)
@given(
    st.one_of(st.lists(FRAGMENTS, max_size=60).map("".join), st.text(max_size=200), st.binary(max_size=200))
)
def test_garbage_raises_nothing_else(text: str | bytes) -> None:
    try:
        document = parse(text, "file.yaml")
    except SpecError:
        return  # anything else that is raised fails the test
    assert isinstance(document.value, dict)
