"""Tables of what was done: T1 protocol, T2 space, T7 outcomes, T10 winners, readings of the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.compare import cells
from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.cells import left, right
from search.compare.protocol import Entry
from search.compare.tables import Cell, Table


def outcomes(comparison: Comparison, analysis: Analysis) -> Table:
    """T7: one row per method."""
    del comparison
    return Table(
        key="outcomes",
        title="What became of the trials, and what they cost",
        caption=(
            "All replicates together. A diverged trial is not among the complete ones. Retried: attempts "
            "beyond a trial's first. Shared: trained once for two methods, costs stand in both. Waiting: "
            "between a trial's begin and end, what was not training."
        ),
        columns=(
            left("method", "method"),
            right("trials", "trials"),
            right("complete", "complete"),
            right("pruned", "pruned"),
            right("diverged", "diverged"),
            right("failed", "failed"),
            right("open", "open"),
            right("retried", "retried"),
            right("shared", "shared"),
            right("epochs", "epochs"),
            right("train_seconds", "training"),
            right("sampler_seconds", "sampler"),
            right("idle_seconds", "waiting"),
        ),
        rows=tuple(
            (
                cells.text(method.method),
                cells.count((counts := method.counts).total),
                cells.count(counts.complete),
                cells.count(counts.pruned),
                cells.count(counts.diverged),
                cells.count(counts.failed),
                cells.count(counts.running + counts.waiting),
                cells.count(counts.retried),
                cells.count(method.shared),
                cells.count(method.epochs),
                cells.duration(method.train_seconds),
                cells.duration(method.sampler_seconds),
                cells.duration(method.idle_seconds),
            )
            for method in analysis.outcomes
        ),
    )


def edges(comparison: Comparison, analysis: Analysis) -> Table:
    """T7's last column: winners on the edge of the space, one row per dimension."""
    names = dict.fromkeys(edge.dimension for method in analysis.outcomes for edge in method.edges)
    rows = []
    for name in names:
        row = [cells.text(name)]
        for method in analysis.outcomes:
            edge = next((edge for edge in method.edges if edge.dimension == name), None)
            row.append(
                cells.EMPTY
                if edge is None
                else Cell(edge.low + edge.high, f"{edge.low} low, {edge.high} high, of {edge.n}")
            )
        rows.append(tuple(row))
    return Table(
        key="edges",
        title="Winners on the edge of the space",
        caption=(
            "Studies whose best trial lies at either end of a dimension: the outermost hundredth of a range "
            "in its own scale, or its outermost value. Many of them say that the range is too narrow."
        ),
        columns=(
            left("dimension", "dimension"),
            *(right(f"method.{method}", method) for method in comparison.methods),
        ),
        rows=tuple(rows),
        exploratory=True,
    )


def winners(comparison: Comparison, analysis: Analysis) -> Table:
    """T10: every study's incumbent with its config."""
    found = [study for study in analysis.studies if study.incumbent is not None]
    space = comparison.spec.get("space")
    known = [str(name) for name in space] if isinstance(space, Mapping) else []
    used = dict.fromkeys(str(name) for s in found if s.incumbent for name in s.incumbent.params)
    names = [*(name for name in known if name in used), *(name for name in used if name not in known)]
    function = comparison.is_function
    rows = []
    for study in found:
        best, again = study.incumbent, study.retrained
        assert best is not None
        rows.append(
            (
                cells.text(study.method),
                cells.count(study.replicate),
                cells.count(best.number),
                cells.count(best.epochs),
                cells.number(study.searched),
                *(() if function else (cells.number(None if again is None else again.validation_mean),)),
                cells.number(None if again is None else again.test_mean),
                cells.count(None if again is None else len(again.seeds)),
                *(cells.plain(best.params.get(name)) for name in names),
            )
        )
    return Table(
        key="winners",
        title="The winning configurations",
        caption=(
            "Each study's best trial among those trained to their end; ties go to the earlier one. "
            "Retrained: means over fresh seeds."
        ),
        columns=(
            left("method", "method"),
            right("replicate", "replicate"),
            right("trial", "trial"),
            right("epochs", "epochs"),
            right("searched", f"{comparison.judged}, in the search"),
            *(() if function else (right("retrained_validation", f"{comparison.judged}, retrained"),)),
            right("retrained_test", f"{comparison.scored}, retrained"),
            right("seeds", "seeds"),
            *(left(f"params.{name}", name) for name in names),
        ),
        rows=tuple(rows),
    )


def readings(comparison: Comparison, analysis: Analysis) -> Table:
    """Every reading of the sealed test set."""
    del analysis
    function = comparison.is_function
    return Table(
        key="test-readings",
        title="Retrainings of the winners" if function else "Readings of the sealed test set",
        caption=(
            f"Each one is logged: {len(comparison.readings)} in all. Declared: winners retrained with fresh "
            "seeds, as the file asks." + ("" if function else " By hand: 'shoal score'.")
        ),
        columns=(
            left("method", "method"),
            right("replicate", "replicate"),
            right("trial", "trial"),
            right("seed", "seed"),
            left("purpose", "purpose"),
            right("test", comparison.scored),
            *(() if function else (right("validation", comparison.judged),)),
            right("epochs", "epochs"),
            *(() if function else (right("images", "images"),)),
            left("read_at", "read at"),
        ),
        rows=tuple(
            (
                cells.text(reading.method),
                cells.count(reading.replicate),
                cells.count(reading.trial),
                Cell(reading.seed, str(reading.seed)),
                Cell(reading.purpose, "declared" if reading.purpose == "retraining" else "by hand"),
                cells.number(reading.metrics.get(comparison.metric)),
                # A function has no images: both of its values are the same.
                *(() if function else (cells.number(reading.validation.get(comparison.metric)),)),
                cells.count(reading.epochs),
                *(() if function else (cells.count(reading.images),)),
                cells.moment(reading.read_at),
            )
            for reading in comparison.readings
        ),
    )


def protocol(comparison: Comparison, analysis: Analysis) -> Table:
    """T1: the protocol with its actual values."""
    del comparison
    return Table(
        key="protocol",
        title="Protocol and environment",
        caption="What was declared before the run, how it was run, and on what.",
        columns=(left("section", "section"), left("name", "name"), left("value", "value")),
        rows=_entries(analysis.protocol.entries),
    )


def space(comparison: Comparison, analysis: Analysis) -> Table:
    """T2: the search space and the grid's levels."""
    del comparison
    return Table(
        key="space",
        title="Search space and grid levels",
        caption="Read by all methods alike. Grid: the values that the grids took.",
        columns=(left("dimension", "dimension"), left("what", "what"), left("values", "values")),
        rows=_entries(analysis.protocol.space),
    )


def _entries(entries: Sequence[Entry]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(cells.text(part) for part in (e.section, e.name, e.text)) for e in entries)
