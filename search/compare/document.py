"""`report.json`: the comparison and its analysis for programs, in the form that `report_form` describes.

Other commands embed the same document (`shoal run --json`), and tools read it, so keys are only
ever added within a version. Version 1 held summaries and no analysis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from search.compare import report_blocks as blocks
from search.compare import report_form as form
from search.compare.analysis import Analysis
from search.compare.base import Comparison, Reading
from search.compare.budgets import Anytime, AnytimeMethod, Axis
from search.compare.cuts import MethodCut
from search.compare.document_blocks import (
    band_form,
    counts_form,
    curve_form,
    distribution_form,
    interval_form,
    numbers,
    speed_up_form,
    table_form,
)
from search.compare.efficiency import AxisEfficiency, Efficiency, MethodEfficiency
from search.compare.headline import MethodResult, Retrained, StudyResult
from search.compare.outcomes import MethodOutcomes, count
from search.compare.pairs import PairFinding
from search.compare.primary import Primary
from search.compare.protocol import Entry, Protocol
from search.compare.regret import ExpectedBest, Regret
from search.compare.report_form import SCHEMA
from search.compare.statistics.hypothesis_tests import RankTest
from search.compare.tables import Table

__all__ = ["SCHEMA", "Json", "document", "plain", "to_json"]

Json = dict[str, object]


def document(comparison: Comparison, analysis: Analysis, tables: Sequence[Table]) -> Json:
    """Everything that `report.json` holds, as plain values. Raises `ValueError` for NaN."""
    return report(comparison, analysis, tables).model_dump(mode="json", by_alias=True)


def to_json(document: Json) -> str:
    """The document as text, readable and with keys in our order; refuses numbers that JSON can't hold."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: object) -> object:
    """The value in terms of JSON; what JSON doesn't know becomes its text, and NaN or infinity null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def report(comparison: Comparison, analysis: Analysis, tables: Sequence[Table]) -> form.Report:
    """The document as checked values."""
    found, rules = analysis.conclusion, analysis.rules
    return form.Report(
        schema=SCHEMA,
        experiment=comparison.experiment,
        state=comparison.state,
        created_at=comparison.created_at.isoformat(),
        collected_at=comparison.collected_at.isoformat(),
        metric=form.MetricForm(
            name=comparison.metric, direction=comparison.direction, scale=rules.scale, unit=rules.unit
        ),
        replicates=form.ReplicatesForm(run=comparison.replicates, counted=analysis.replicates),
        declared=_declared(analysis.protocol),
        verdict=form.VerdictForm(text=found.verdict, claims=found.claims, not_shown=found.not_shown),
        notes=tuple(blocks.NoteForm(kind=note.kind, text=note.text) for note in analysis.notes),
        primary=_primary(analysis.primary),
        methods=tuple(
            _method(comparison, method, outcomes)
            for method, outcomes in zip(analysis.methods, analysis.outcomes, strict=True)
        ),
        pairs=tuple(map(_pair, analysis.pairs)),
        anytime=tuple(map(_anytime, analysis.anytime)),
        cuts=tuple(_cut(budget.axis, cut) for budget in analysis.cuts for cut in budget.cuts),
        efficiency=_target(analysis.efficiency),
        expected_best=_expected_best(analysis.expected_best),
        regret=_regret(analysis.regret),
        studies=tuple(map(_study, analysis.studies)),
        test_readings=tuple(map(_reading, comparison.readings)),
        protocol=tuple(map(_entry, analysis.protocol.entries)),
        space=tuple(map(_entry, analysis.protocol.space)),
        tables=tuple(map(table_form, tables)),
        spec=_mapping(comparison.spec),
        environment=_mapping(comparison.environment),
    )


def _mapping(value: object) -> Json:
    """A mapping in terms of JSON; an empty one for anything else."""
    return {str(key): plain(entry) for key, entry in value.items()} if isinstance(value, Mapping) else {}


def _declared(protocol: Protocol) -> form.DeclaredForm:
    settings = protocol.settings
    return form.DeclaredForm(
        axis=settings.axis,
        pairs=protocol.pairs,
        alpha=settings.alpha,
        smallest_difference=settings.smallest_difference,
        meaningful=settings.meaningful,
        power=settings.power,
        retraining_seeds=settings.retrain.seeds,
        retraining_at_least=settings.retrain.at_least,
    )


def _entry(entry: Entry) -> blocks.EntryForm:
    return blocks.EntryForm(**asdict(entry))


def _primary(primary: Primary) -> form.PrimaryForm:
    return form.PrimaryForm(
        kind=primary.kind,
        title=primary.title,
        text=primary.text,
        axis=primary.axis,
        budget=primary.budget,
        retrained=primary.retrained,
        to_retrain=primary.to_retrain,
        ranked=primary.ranked,
        seeds_needed=primary.needed,
        lacking=tuple(form.LackingForm(**asdict(one)) for one in primary.lacking),
        common_budget=primary.common,
        beyond_budget=primary.beyond,
        missing=primary.missing,
        values=tuple(
            form.ValueForm(method=method, replicate=replicate, value=value)
            for method, values in primary.values.items()
            for replicate, value in values.items()
        ),
    )


def _method(comparison: Comparison, method: MethodResult, outcomes: MethodOutcomes) -> form.MethodForm:
    settings = comparison.spec.get("methods")
    return form.MethodForm(
        method=method.method,
        settings=_mapping(settings.get(method.method) if isinstance(settings, Mapping) else None),
        replicates=method.replicates,
        score=distribution_form(method.score),
        searched=distribution_form(method.searched),
        selection_bias=distribution_form(method.selection_bias),
        best_study=None if method.best is None else method.best.study.name,
        trials=counts_form(outcomes.counts),
        shared_trials=outcomes.shared,
        epochs=outcomes.epochs,
        train_seconds=outcomes.train_seconds,
        sampler_seconds=outcomes.sampler_seconds,
        idle_seconds=outcomes.idle_seconds,
        edges=tuple(blocks.EdgeForm(**asdict(edge)) for edge in outcomes.edges),
    )


def _pair(pair: PairFinding) -> form.PairForm:
    result = pair.result
    return form.PairForm(
        first=result.first,
        second=result.second,
        outcome=pair.outcome,
        declared=pair.declared,
        replicates=result.replicates,
        difference=interval_form(result.difference),
        superiority=interval_form(result.superiority),
        superiority_all_pairs=interval_form(result.superiority_all_pairs),
        test=_test(result.test),
        holm_p=result.holm_p,
        pairs_tested=result.pairs_tested,
        label=result.label,
        verdict=result.verdict,
        better=result.better,
        text=pair.text,
    )


def _test(test: RankTest | None) -> form.TestForm | None:
    return None if test is None else form.TestForm(test=test.test, method=test.method, p=test.p_value)


def _anytime(found: Anytime) -> form.AnytimeForm:
    return form.AnytimeForm(
        axis=found.axis,
        declared=found.declared,
        budget=found.budget,
        methods=tuple(map(_anytime_method, found.methods)),
    )


def _anytime_method(method: AnytimeMethod) -> form.AnytimeMethodForm:
    return form.AnytimeMethodForm(
        method=method.method,
        band=None if method.band is None else band_form(method.band),
        curves=tuple(
            curve_form(replicate, curve, method.areas.get(replicate))
            for replicate, curve in method.curves.items()
        ),
    )


def _cut(axis: Axis, cut: MethodCut) -> form.CutForm:
    return form.CutForm(
        axis=axis,
        fraction=cut.fraction,
        position=cut.position,
        method=cut.method,
        values=None if cut.values is None else blocks.QuartilesForm(**asdict(cut.values)),
        missing=cut.missing,
    )


def _target(found: Efficiency) -> form.TargetForm:
    return form.TargetForm(
        target=found.target,
        text=found.text,
        methods=tuple(_efficiency(axis, method) for axis in found.axes for method in axis.methods),
    )


def _efficiency(axis: AxisEfficiency, method: MethodEfficiency) -> form.EfficiencyForm:
    success = interval_form(method.success)
    assert success is not None
    return form.EfficiencyForm(
        axis=axis.axis,
        method=method.method,
        budget=axis.budget,
        times=method.times.times,
        reached=method.times.reached,
        success=success,
        expected_running_time=method.expected_running_time,
        median_time=method.survival.median,
        speed_up=None if method.speed_up is None else speed_up_form(method.speed_up),
    )


def _expected_best(found: ExpectedBest | None) -> form.ExpectedBestForm | None:
    if found is None:
        return None
    return form.ExpectedBestForm(
        trials=found.trials, replicates=found.replicates, expected=numbers(found.values)
    )


def _regret(found: Regret | None) -> form.RegretForm | None:
    return None if found is None else form.RegretForm.model_validate(asdict(found))


def _study(study: StudyResult) -> form.StudyForm:
    return form.StudyForm(
        study=study.study.name,
        method=study.method,
        replicate=study.replicate,
        counted=study.counted,
        trials=counts_form(count(study.study.trials)),
        winner=_winner(study),
        searched=study.searched,
        at_budget=study.at_budget,
        retrained=None if study.retrained is None else _retrained(study.retrained),
        selection_bias=study.selection_bias,
    )


def _winner(study: StudyResult) -> form.WinnerForm | None:
    best = study.incumbent
    if best is None or best.value is None:
        return None
    return form.WinnerForm(
        trial=best.number, epochs=best.epochs, value=best.value, params=_mapping(best.params)
    )


def _retrained(found: Retrained) -> form.RetrainedForm:
    return form.RetrainedForm(
        trial=found.trial,
        seeds=found.seeds,
        test=found.test,
        validation=found.validation,
        test_mean=found.test_mean,
        validation_mean=found.validation_mean,
    )


def _reading(reading: Reading) -> form.ReadingForm:
    return form.ReadingForm(
        method=reading.method,
        replicate=reading.replicate,
        trial=reading.trial,
        seed=reading.seed,
        purpose=reading.purpose,
        metrics=_finite(reading.metrics),
        validation=_finite(reading.validation),
        epochs=reading.epochs,
        images=reading.images,
        read_at=reading.read_at.isoformat(),
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics by name; null for one that is no number."""
    return {str(name): value if math.isfinite(value) else None for name, value in metrics.items()}
