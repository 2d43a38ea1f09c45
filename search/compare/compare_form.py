"""`compare.json`: several experiments together for programs, and its text.

`compare.schema.json` beside this file is made from these classes (a test keeps them equal).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from search.compare.base import Direction
from search.compare.document import to_json
from search.compare.document_blocks import table_form
from search.compare.primary import OutcomeKind
from search.compare.report_blocks import Form, TableForm
from search.compare.together import Together

SCHEMA: Literal["shoal.compare/1"] = "shoal.compare/1"


class BlockForm(Form):
    """One experiment."""

    experiment: str
    data: str
    """Which images, or which function."""
    metric: str
    direction: Direction
    state: str
    replicates: int
    """Those that are counted."""
    verdict: str
    """Of its own report."""
    scores: dict[str, float]
    """Mean over replicates per method, in the metric's own unit."""
    regrets: dict[str, float]
    """Mean normalised regret per method; empty without random trials."""


class RanksForm(Form):
    """Ranks over experiments."""

    average: dict[str, float]
    """Method → average rank, 1 for the best."""
    friedman_p: float | None
    critical_difference: float | None
    """Nemenyi's; null with fewer than 6 experiments, and where experiments share their data."""
    alpha: float
    not_told_apart: tuple[tuple[str, ...], ...]
    """Groups of methods whose ranks differ by less."""


class CompareForm(Form):
    """All that `shoal compare` says."""

    schema_: Literal["shoal.compare/1"] = Field(alias="schema")
    """Name and version of this form; keys are only added within a version."""
    collected_at: str
    outcome: OutcomeKind
    """What scores are: `retrained` test values, or `searched` validation values."""
    methods: tuple[str, ...]
    text: str
    """What may be said, in words."""
    remarks: tuple[str, ...]
    experiments: tuple[BlockForm, ...]
    ranks: RanksForm
    regrets: dict[str, float]
    """Mean over experiments of the normalised regret, per method."""
    tables: tuple[TableForm, ...]


def compare_document(found: Together) -> dict[str, Any]:
    """Everything that `compare.json` holds, as plain values."""
    across = found.across
    ranks = across.ranks
    assert ranks is not None, "two or more methods are compared"
    return CompareForm(
        schema=SCHEMA,
        collected_at=found.collected_at.isoformat(),
        outcome=across.outcome,
        methods=across.methods,
        text=across.text,
        remarks=found.remarks,
        experiments=tuple(
            BlockForm(
                experiment=comparison.experiment,
                data=block.data,
                metric=comparison.metric,
                direction=comparison.direction,
                state=comparison.state,
                replicates=len(analysis.replicates),
                verdict=analysis.conclusion.verdict,
                scores=dict(block.scores),
                regrets=dict(block.regrets),
            )
            for (comparison, analysis), block in zip(found.found, across.blocks, strict=True)
        ),
        ranks=RanksForm(
            average=dict(zip(ranks.methods, ranks.average_ranks, strict=True)),
            friedman_p=ranks.friedman_p,
            critical_difference=ranks.critical_difference,
            alpha=ranks.alpha,
            not_told_apart=ranks.groups,
        ),
        regrets=dict(across.regrets),
        tables=tuple(map(table_form, found.tables)),
    ).model_dump(mode="json", by_alias=True)


def compare_json(found: Together) -> str:
    """The text of `compare.json`."""
    return to_json(compare_document(found))


def compare_schema() -> dict[str, Any]:
    """The JSON Schema of `compare.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **CompareForm.model_json_schema(mode="serialization", by_alias=True),
    }
