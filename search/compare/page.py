"""One self-contained page: `report.html`.

It works from `file://` without a network: plotly.js, style and data are inside it. Its content
security policy allows exactly the two scripts that we wrote into it, by their hashes, and no
connection at all; every string goes through the template's escaping. Figures are drawn when they
come near the reader's window, so that a long page opens at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.contents import Contents, contents_of
from search.compare.document import plain
from search.compare.figures.base import Figure, series
from search.compare.figures.files import FOLDER
from search.compare.tables import Table
from search.compare.templating import template_environment
from search.markup import embed_json

Block: TypeAlias = Figure | Table

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "result",
        "Result",
        (
            "table:headline",
            "figure:scores",
            "table:pairs",
            "table:pairs-exploratory",
            "figure:time-to-target",
            "table:efficiency",
        ),
    ),
    (
        "course",
        "How it went",
        (
            "figure:best-so-far-epochs",
            "figure:best-so-far-trials",
            "figure:best-so-far-seconds",
            "figure:regret",
            "table:regret",
            "figure:superiority",
            "table:cuts",
            "table:expected-best",
        ),
    ),
    (
        "learned",
        "What was learned of the space",
        (
            "figure:importances",
            "figure:dependence",
            "table:levels",
            "figure:loss-optimizer",
            "figure:rate-batch",
            "figure:gap",
            "figure:diverged",
            "figure:parallel",
        ),
    ),
    (
        "training",
        "Training and cost",
        (
            "table:outcomes",
            "figure:learning-curves",
            "figure:pruned",
            "figure:trial-values",
            "figure:timeline",
        ),
    ),
    ("configs", "Winning configs", ("table:winners", "table:edges", "table:test-readings")),
    ("protocol", "Protocol", ("table:protocol", "table:space")),
)
"""Anchor, heading and contents of the page's sections. A table that isn't named comes last."""

SHOWN_ROWS = 14
"""Longer tables are folded up, with their number of rows."""


FOLDED = frozenset({"pairs-exploratory", "efficiency", "regret", "cuts", "expected-best", "edges"})
"""Tables that only those open who look for them."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section with what it holds, in order."""

    key: str
    title: str
    blocks: tuple[Block, ...]


def render_html(comparison: Comparison, analysis: Analysis, contents: Contents | None = None) -> str:
    """The text of `report.html`; `contents` saves working them out again."""
    contents = contents or contents_of(comparison, analysis)
    return render_page(
        "report.html.j2",
        contents.figures,
        title=comparison.experiment,
        command="shoal report",
        comparison=comparison,
        analysis=analysis,
        sections=sections_of(contents, analysis),
        omitted=contents.omitted,
        methods=list(comparison.methods),
        folder=FOLDER,
        spec_text=json.dumps(plain(comparison.spec), indent=2, ensure_ascii=False),
    )


def render_page(template: str, figures: Sequence[Figure], **values: object) -> str:
    """A page from a template that extends `page.html.j2`, with what its figures need to be drawn.

    `values` are the template's own; all templates want `title`, `command` (which made the page),
    `methods` (for the colours of their names) and `folder` (of the CSV files).
    """
    from plotly.offline import get_plotlyjs

    environment = template_environment(autoescape=True, finalize=None)
    environment.globals |= {"series": series, "is_table": lambda block: isinstance(block, Table)}
    environment.filters |= {"tied": tied, "breakable": breakable}
    # The parser ends a script at the first `</script`, wherever it stands.
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    script = _template_file("report.js")
    return environment.get_template(template).render(
        shown_rows=SHOWN_ROWS,
        folded=FOLDED,
        plots=embed_json(
            {f"{figure.key}-{k}": panel.plot for figure in figures for k, panel in enumerate(figure.panels)}
        ),
        plotly=Markup(plotly),  # noqa: S704  a library's file, and our own two below
        script=Markup(script),  # noqa: S704  our own
        style=Markup(_template_file("report.css")),  # noqa: S704  our own
        policy=content_security_policy([plotly, script]),
        **values,
    )


def sections_of(contents: Contents, analysis: Analysis) -> tuple[Section, ...]:
    """The page's sections that hold anything; the declared budget's curve is the first of its kind.

    The tables of importances and of regret stand under their figures and aren't repeated.
    """
    shown = {figure.table for figure in contents.figures}
    blocks: dict[str, Block] = {f"table:{t.key}": t for t in contents.tables if t not in shown}
    blocks |= {f"figure:{figure.key}": figure for figure in contents.figures}
    declared = f"figure:best-so-far-{analysis.protocol.declared_axis}"
    named = {key for _, _, keys in SECTIONS for key in keys}
    found = []
    for key, title, keys in SECTIONS:
        order = sorted(keys, key=lambda name: name != declared) if key == "course" else list(keys)
        if key == SECTIONS[-1][0]:
            order += [name for name in blocks if name not in named]
        held = tuple(blocks[name] for name in order if name in blocks)
        if held:
            found.append(Section(key, title, held))
    return tuple(found)


def tied(text: str) -> str:
    """The text with numbers kept on one line with their percent sign, and `n =` with its number."""
    return text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")


def breakable(name: str) -> Markup:
    """A name, escaped, that a narrow screen breaks after its underscores and not within its words."""
    return Markup("_<wbr>").join(name.split("_"))


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


def _template_file(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
