"""The command that puts several experiments together: `compare`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import RenderableType
from rich.text import Text

from search import output
from search.commands.options import AsJson, DatabaseUrl, flag, opened
from search.commands.reporting import REPORTS, terminal_table
from search.experiment.problems import Problem
from search.failures import CommandError, ExitCode, Failure, bad_input

if TYPE_CHECKING:
    from search.compare.analysis import Analysis
    from search.compare.base import Comparison
    from search.compare.together import NotComparable, Together

FOLDER = REPORTS / "compare"
"""Holds a folder per comparison."""

LONGEST = 120
"""Characters of such a folder's name; longer ones are cut, and told apart by a hash."""

SHOWN = {
    "across": {"method": "method", "rank": "average rank", "regret": "normalised regret"},
    "experiments": {
        "experiment": "experiment",
        "metric": "metric",
        "replicates": "replicates",
        "trials": "trials",
        "best": "best mean",
    },
    "headlines": {
        "experiment": "experiment",
        "method": "method",
        "n": "n",
        "mean": "mean",
        "mean_interval": "95 % interval",
        "regret": "regret",
    },
    "pairs": {
        "experiment": "experiment",
        "pair": "pair",
        "difference": "difference",
        "superiority": "P",
        "all_p": "p (all)",
        "verdict": "verdict",
    },
}
"""Table → the columns for a terminal with their short titles: as many as 80 characters hold."""


def compare(
    *experiments: Annotated[str, Parameter(help="Names of two or more, as `shoal status` lists them.")],
    methods: Annotated[
        str | None, Parameter(help="Compare only these, by commas; default: all, which all must have.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help=f"Folder; default: {FOLDER}/ and the experiments' names.")
    ] = None,
    overwrite: Annotated[bool, flag("Replace a comparison of other experiments in the folder.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put experiments together: ranks and regrets over them, and each one's own findings.

    Writes compare.json, compare.md and compare.html; with --json, files only into --out.
    """
    if len(experiments) < 2:
        only = experiments[0] if experiments else "EXPERIMENT"
        raise bad_input(
            "two experiments or more are compared", next=f"shoal report {only} shows a single one"
        )
    twice = sorted({name for name in experiments if experiments.count(name) > 1})
    if twice:
        raise bad_input(f"named twice: {', '.join(twice)}")
    wanted = None if methods is None else _listed(methods)

    from search.compare.analysis import analyse
    from search.compare.collect import collect
    from search.compare.compare_files import write_compare
    from search.compare.compare_form import compare_json
    from search.compare.together import NotComparable, together

    folder = out if out is not None else None if as_json else compare_folder(experiments)
    if folder is not None and not overwrite:
        _spare_others(folder, experiments)
    with opened(database) as connection:
        collected = [collect(connection, name) for name in experiments]
    found: Sequence[tuple[Comparison, Analysis]] = [(one, analyse(one)) for one in collected]
    try:
        result = together(found, methods=wanted)
    except NotComparable as error:
        raise _refused(error, experiments, [one.methods for one in collected]) from None
    files = None if folder is None else write_compare(result, folder)
    if files is not None:
        output.message(f"wrote {files.json}, {files.markdown.name} and {files.html.name}")
    if as_json:
        output.text(compare_json(result))
        return
    output.show(*compare_parts(result))
    if files is not None:
        output.show("", f"report: {files.html.resolve()}")
    for remark in result.remarks:
        output.message(f"note: {remark}")


def compare_folder(experiments: Sequence[str]) -> Path:
    """Where the comparison of these experiments goes unless told, in whatever order they are named."""
    name = "+".join(sorted(experiments))
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return FOLDER / name


def _spare_others(folder: Path, experiments: Sequence[str]) -> None:
    """Refuse a folder that holds a comparison of other experiments."""
    from search.compare.compare_files import experiments_in

    held = experiments_in(folder)
    if held is not None and set(held) != set(experiments):
        whose = ", ".join(held) or "something else"
        raise bad_input(
            f"{folder} holds a comparison of {whose}",
            next="--overwrite replaces it, --out names another folder",
        )


def compare_parts(found: Together) -> tuple[RenderableType, ...]:
    """What may be said, and the tables in the columns that matter most."""
    parts: list[RenderableType] = [Text(output.clean(found.across.text), style="bold")]
    tables = {table.key: table for table in found.tables}
    for key, columns in SHOWN.items():
        if key in tables:
            parts += ["", terminal_table(tables[key], columns)]
    return tuple(parts)


def _listed(text: str) -> tuple[str, ...]:
    """Names by commas, each once."""
    names = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if len(names) < 2:
        raise bad_input("--methods names two or more, by commas", next="--methods random,tpe")
    return names


def _refused(
    error: NotComparable, experiments: Sequence[str], methods: Sequence[Sequence[str]]
) -> CommandError:
    common = [name for name in methods[0] if all(name in others for others in methods)]
    helps = any(one.choosable for one in error.obstacles) and len(common) > 1
    again = f"shoal compare {' '.join(experiments)} --methods {','.join(common)}"
    return CommandError(
        Failure(
            ExitCode.BAD_INPUT,
            "not_comparable",
            "these experiments can't be put together",
            why="every method that is compared must have been run in every experiment",
            next=f"{again} leaves the others out" if helps else "",
            problems=tuple(Problem(one.experiment, one.text, "") for one in error.obstacles),
        )
    )
