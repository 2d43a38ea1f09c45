"""The report as files: `report.json`, `report.md` and one self-contained `report.html`.

The page works from `file://` without a network: plotly.js, style and data are inside it. Its
content security policy allows exactly the two scripts that we wrote into it, by their hashes, and
no connection at all; every string goes through the templates' escaping.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from search.compare.base import Comparison
from search.compare.document import document, to_json
from search.compare.figures import best_so_far_figure, series
from search.compare.summary import Spread, Summary, summarise
from search.formats import (
    NOTHING,
    format_count,
    format_number,
    format_revision,
    format_seconds,
    format_spread,
    format_time,
    format_value,
)

TEMPLATES = jinja2.PackageLoader("search.compare", "templates")


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    markdown: Path
    html: Path


def write_report(comparison: Comparison, folder: Path) -> ReportFiles:
    """Write all three files into the folder, which is made if it is missing.

    Each file is written aside and renamed, so that a reader never sees half of one. Raises
    `OSError` where the folder can't be written.
    """
    summary = summarise(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder / "report.json", folder / "report.md", folder / "report.html")
    _write(files.json, render_json(comparison, summary))
    _write(files.markdown, render_markdown(comparison, summary))
    _write(files.html, render_html(comparison, summary))
    return files


def render_json(comparison: Comparison, summary: Summary) -> str:
    """The text of `report.json`; its keys are described in `document`."""
    return to_json(document(comparison, summary))


def render_markdown(comparison: Comparison, summary: Summary) -> str:
    """The text of `report.md`, short enough for a pull request."""
    environment = _environment(autoescape=False, finalize=escape_markdown)
    return environment.get_template("report.md.j2").render(_context(comparison, summary))


def render_html(comparison: Comparison, summary: Summary) -> str:
    """The text of `report.html`."""
    from plotly.offline import get_plotlyjs

    environment = _environment(autoescape=True, finalize=None)
    figures = [best_so_far_figure(comparison, summary)]
    # The parser ends a script at the first `</script`, wherever it stands.
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    script = (Path(__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    style = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        _context(comparison, summary)
        | {
            "figures": figures,
            "plots": embed_json({figure.key: figure.plot for figure in figures}),
            "plotly": Markup(plotly),  # noqa: S704  a library's file, and our own two below
            "script": Markup(script),  # noqa: S704
            "style": Markup(style),  # noqa: S704
            "policy": content_security_policy([plotly, script]),
            "spec_text": json.dumps(document(comparison, summary)["spec"], indent=2, ensure_ascii=False),
        }
    )


def content_security_policy(scripts: Iterable[str]) -> str:
    """The policy that lets the page run these inline scripts and nothing else.

    Styles are allowed inline because plotly.js makes style sheets and attributes as it draws;
    images are the ones that plotly makes when a reader saves a figure.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def embed_json(value: object) -> Markup:
    """JSON that may stand inside a `<script>` element: it can't end the element nor begin a comment.

    U+2028 and U+2029, which older JavaScript took for line ends, are escaped with all non-ASCII.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return Markup(text)  # noqa: S704  escaped above


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


def strip(spread: Spread | None, low: float, high: float) -> list[float]:
    """Where the replicates' values lie between `low` and `high`, as numbers from 0 to 100."""
    if spread is None:
        return []
    width = high - low
    return [50.0 if width <= 0 else 100 * (value - low) / width for value in spread.values]


def flatten(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of dotted name and text."""
    rows: list[tuple[str, str]] = []
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            rows.extend(flatten(entry, f"{prefix}{key}."))
        elif isinstance(entry, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(format_value(item) for item in entry) or NOTHING))
        else:
            rows.append((f"{prefix}{key}", NOTHING if isinstance(entry, Mapping) else format_value(entry)))
    return rows


def _context(comparison: Comparison, summary: Summary) -> dict[str, object]:
    values = [value for method in summary.methods if method.best for value in method.best.values]
    names = dict.fromkeys(name for m in summary.methods if m.incumbent for name in m.incumbent.trial.params)
    protocol = {
        key: entry for key, entry in comparison.spec.items() if key not in {"experiment", "space", "methods"}
    }
    space = comparison.spec.get("space")
    methods = comparison.spec.get("methods")
    return {
        "comparison": comparison,
        "summary": summary,
        "dimensions": list(names),
        "low": min(values, default=0.0),
        "high": max(values, default=0.0),
        "protocol": flatten(protocol),
        "space": _rows(space),
        "settings": _rows(methods),
        "environment": flatten(comparison.environment),
    }


def _rows(part: object) -> list[tuple[str, str]]:
    """A section of the spec, one row per entry, with what it holds in one line."""
    if not isinstance(part, Mapping):
        return []
    rows = []
    for name, entry in part.items():
        pairs = flatten(entry) if isinstance(entry, Mapping) else [("", format_value(entry))]
        shown = [f"{key}: {text}" if key else text for key, text in pairs if text != NOTHING]
        rows.append((str(name), "; ".join(shown) or "defaults"))
    return rows


def _environment(*, autoescape: bool, finalize: object) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=TEMPLATES,
        autoescape=autoescape,  # noqa: S701  on for HTML; Markdown escapes by `finalize`
        finalize=finalize,  # type: ignore[arg-type]
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "sd": format_spread,
        "value": format_value,
        "count": format_count,
        "seconds": format_seconds,
        "time": format_time,
        "revision": format_revision,
    }
    environment.globals |= {"strip": strip, "series": series}
    return environment


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
