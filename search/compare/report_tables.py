"""The tables that the report prints, as values, in its order.

T1 to T7 and T10 as the protocol of the comparison numbers them, with regret, the expected best of
random search, edges and readings of the test set beside them. What was learned on the space (T8,
T9) belongs to `learned`; several experiments together (T11) to `across`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from search.compare import record_tables, result_tables
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.tables import Table

Build: TypeAlias = Callable[[Comparison, Analysis], Table]

TABLES: dict[str, Build] = {
    "headline": result_tables.headline,
    "pairs": result_tables.pairs,
    "pairs-exploratory": result_tables.exploratory_pairs,
    "cuts": result_tables.cuts,
    "efficiency": result_tables.efficiency,
    "outcomes": record_tables.outcomes,
    "edges": record_tables.edges,
    "regret": result_tables.regret,
    "expected-best": result_tables.expected_best,
    "winners": record_tables.winners,
    "test-readings": record_tables.readings,
    "protocol": record_tables.protocol,
    "space": record_tables.space,
}
"""Key → how it is made, in the report's order."""


def tables_of(comparison: Comparison, analysis: Analysis) -> tuple[Table, ...]:
    """All tables that have a row, in the report's order."""
    made = [build(comparison, analysis) for build in TABLES.values()]
    return tuple(table for table in made if table.rows)
