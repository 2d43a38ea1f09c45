"""The report as files: `report.json`, `report.md` and one self-contained `report.html`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison
from search.compare.contents import Contents, contents_of
from search.compare.document import document, to_json
from search.compare.figures.files import write_data
from search.compare.page import render_html
from search.compare.report_tables import tables_of
from search.compare.tables import Table
from search.compare.templating import template_environment

__all__ = [
    "ReportFiles",
    "escape_markdown",
    "markdown_table",
    "render_html",
    "render_json",
    "render_markdown",
    "write_report",
    "write_text",
]


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    markdown: Path
    html: Path
    data: tuple[Path, ...] = ()
    """The data files of figures, tables and trials, in `report-data`."""


def write_report(
    comparison: Comparison,
    folder: Path,
    analysis: Analysis | None = None,
    contents: Contents | None = None,
) -> ReportFiles:
    """Write all files into the folder, which is made if it is missing.

    Each file is written aside and renamed, so that a reader never sees half of one. `analysis` and
    `contents` save working them out again. Raises `OSError` where the folder can't be written.
    """
    analysis = analysis or analyse(comparison)
    contents = contents or contents_of(comparison, analysis)
    folder.mkdir(parents=True, exist_ok=True)
    data = write_data(folder, comparison, contents.figures, contents.tables)
    files = ReportFiles(folder / "report.json", folder / "report.md", folder / "report.html", data)
    write_text(files.json, render_json(comparison, analysis, contents.tables))
    write_text(files.markdown, render_markdown(comparison, analysis))
    write_text(files.html, render_html(comparison, analysis, contents))
    return files


def render_json(comparison: Comparison, analysis: Analysis, tables: Sequence[Table]) -> str:
    """The text of `report.json`; its keys are described in `report_form`."""
    return to_json(document(comparison, analysis, tables))


def render_markdown(comparison: Comparison, analysis: Analysis) -> str:
    """The text of `report.md`, short enough for a pull request."""
    environment = template_environment(autoescape=False, finalize=escape_markdown)
    environment.globals |= {"markdown_table": markdown_table}
    return environment.get_template("report.md.j2").render(
        comparison=comparison,
        analysis=analysis,
        tables={table.key: table for table in tables_of(comparison, analysis)},
        dimensions=_dimensions(analysis),
    )


def markdown_table(table: Table) -> Markup:
    """The table in Markdown, every text in it escaped."""
    rules: list[object] = ["--:" if column.align == "right" else "---" for column in table.columns]
    rows: list[list[object]] = [
        [escape_markdown(column.title) for column in table.columns],
        rules,
        *([escape_markdown(cell.text) for cell in row] for row in table.rows),
    ]
    return Markup("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))  # noqa: S704  escaped above


def _dimensions(analysis: Analysis) -> list[str]:
    """The dimensions of the methods' best configs, in the order in which they come up."""
    best = [method.best.incumbent for method in analysis.methods if method.best is not None]
    return list(dict.fromkeys(str(name) for trial in best if trial is not None for name in trial.params))


_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~])")
_LINES = re.compile(r"\s*[\r\n\u2028\u2029]+\s*")


def escape_markdown(value: object) -> object:
    """The value's text with everything that Markdown or HTML would read as markup escaped.

    Numbers and text that is marked as safe pass.
    """
    if isinstance(value, Markup | bool | int | float) or value is None:
        return value
    text = _LINES.sub(" ", html.escape(str(value), quote=False))
    return _MARKDOWN.sub(r"\\\1", text)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
