"""What a report holds beside its words: every table and every figure, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.figures.base import Figure, Material, Omitted
from search.compare.figures.registry import figures_of
from search.compare.learned.learn import learned_tables
from search.compare.report_tables import tables_of
from search.compare.tables import Table


@dataclass(frozen=True, slots=True)
class Contents:
    """Tables and figures in the report's order."""

    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    omitted: tuple[Omitted, ...]
    """Figures that there is no data for, each with its reason."""


def contents_of(comparison: Comparison, analysis: Analysis) -> Contents:
    """All tables that have a row, those of what was learned included, and all figures."""
    material = Material(comparison, analysis)
    made = figures_of(material)
    return Contents(
        tables=(*tables_of(comparison, analysis), *learned_tables(material.learned)),
        figures=tuple(figure for figure in made if isinstance(figure, Figure)),
        omitted=tuple(figure for figure in made if isinstance(figure, Omitted)),
    )
