"""Several experiments together as files: `compare.json`, `compare.md` and a self-contained `compare.html`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from search.compare.compare_form import compare_json
from search.compare.figures.files import contents_data, write_data_files
from search.compare.page import Block, Section, render_page
from search.compare.render import escape_markdown, markdown_table, write_text
from search.compare.templating import template_environment
from search.compare.together import Together

FOLDER = "compare-data"

TITLE = "Experiments compared"

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ranks", "Ranks and regrets", ("table:across", "figure:ranks", "figure:regrets", "figure:parallelism")),
    ("experiments", "Each experiment", ("table:experiments", "table:headlines", "table:pairs")),
    ("differences", "Differences", ("table:differences",)),
)
"""Anchor, heading and contents of the page's sections."""

SHOWN = ("across", "experiments", "pairs")
"""Tables that `compare.md` doesn't fold up."""


@dataclass(frozen=True, slots=True)
class CompareFiles:
    """Where a comparison of experiments was written."""

    json: Path
    markdown: Path
    html: Path
    data: tuple[Path, ...]
    """The data files, in `compare-data`."""


def write_compare(found: Together, folder: Path) -> CompareFiles:
    """Write all files into the folder, making it if it is missing. Raises `OSError` where it can't be."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_data_files(folder / FOLDER, contents_data(found.figures, found.tables))
    files = CompareFiles(folder / "compare.json", folder / "compare.md", folder / "compare.html", data)
    write_text(files.json, compare_json(found))
    write_text(files.markdown, compare_markdown(found))
    write_text(files.html, compare_html(found))
    return files


def experiments_in(folder: Path) -> tuple[str, ...] | None:
    """The experiments that a folder's comparison is of; none if it can't be told, None without one."""
    try:
        held = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        return tuple(str(one["experiment"]) for one in held["experiments"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def compare_markdown(found: Together) -> str:
    """The text of `compare.md`."""
    environment = template_environment(autoescape=False, finalize=escape_markdown)
    environment.globals |= {"markdown_table": markdown_table}
    return environment.get_template("compare.md.j2").render(found=found, title=TITLE, shown=SHOWN)


def compare_html(found: Together) -> str:
    """The text of `compare.html`."""
    return render_page(
        "compare.html.j2",
        found.figures,
        title=TITLE,
        command="shoal compare",
        found=found,
        sections=_sections(found),
        methods=list(found.across.methods),
        folder=FOLDER,
    )


def _sections(found: Together) -> tuple[Section, ...]:
    blocks: dict[str, Block] = {f"table:{table.key}": table for table in found.tables}
    blocks |= {f"figure:{figure.key}": figure for figure in found.figures}
    sections = (
        Section(key, title, tuple(blocks[name] for name in names if name in blocks))
        for key, title, names in SECTIONS
    )
    return tuple(section for section in sections if section.blocks)
