"""What the README tells a user to type, typed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from cyclopts import App

from search.cli import COMMANDS
from search.commands.databases import db
from search.commands.scheduling import schedule
from tests.contracts.shoal_command import Shoal, tiny

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def console_lines() -> list[list[str]]:
    """The commands of all fenced console blocks, as words, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    return [shlex.split(line, comments=True) for line in lines]


GROUPS = {"db": db, "schedule": schedule}
MAKE = [words[1:] for words in console_lines() if words[0] == "make"]
SHOAL = [words[1:] for words in console_lines() if words[0] == "shoal"]


def names() -> set[str]:
    """Every command, and the commands of the groups with their group's name before them."""
    plain = {command for commands in COMMANDS.values() for command in commands}
    return plain | GROUPS.keys() | {f"{group} {name}" for group, app in GROUPS.items() for name in parts(app)}


def parts(app: App) -> set[str]:
    return {name for name in app if not name.startswith("-")}


def test_every_command_line_is_of_a_kind_that_is_tested() -> None:
    assert {words[0] for words in console_lines()} == {"make", "shoal"}
    assert MAKE
    assert SHOAL


@pytest.mark.parametrize("targets", MAKE, ids=" ".join)
def test_make_lines_name_targets(targets: list[str]) -> None:
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"no target {target}"
    subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, check=True, timeout=60)


@pytest.mark.slow
def test_shoal_lines_run_in_their_order(shoal: Shoal) -> None:
    """Exactly as they stand; only the file is made small between two lines, for the run takes minutes."""
    for arguments in SHOAL:
        if arguments[0] == "run":
            (file,) = (argument for argument in arguments if argument.endswith(".yaml"))
            assert (shoal.folder / file).exists(), "an earlier line made it"
            shoal.write(file, tiny("my-search"))
        shoal(*arguments)
    ran = [arguments[0] for arguments in SHOAL]
    assert ran[:3] == ["init", "plan", "run"]
    assert "my-search  finished" in shoal("status", "my-search").stdout


def test_every_command_stands_in_the_table() -> None:
    section = README[README.index("## Commands") : README.index("## The database")]
    missing = [name for name in names() - GROUPS.keys() if not in_table(section, name)]
    assert missing == []


def in_table(section: str, name: str) -> bool:
    """Whether a row names a command: `shoal NAME`, or for `db up`, `down` …, the words after the first."""
    group, _, last = name.rpartition(" ")
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `shoal ")]
    if not group:
        return any(re.search(rf"`shoal {name}[ `]", row) for row in rows)
    of_group = [row for row in rows if f"`shoal {group} " in row]
    return any(re.search(rf"`(shoal {group} )?{last}[ `]", row) for row in of_group)


def test_every_command_that_is_named_exists() -> None:
    groups = "".join(f"(?:{group} (?={'|'.join(sorted(parts(app)))}))?" for group, app in GROUPS.items())
    named = {name.strip() for name in re.findall(rf"shoal ({groups}[a-z]+)", inside_code(README))}
    assert {"run", "db up"} <= named
    assert named - names() == set()


def inside_code(text: str) -> str:
    """What stands in backticks and fences; prose may say `shoal` and go on."""
    fences = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*fences, *spans])
