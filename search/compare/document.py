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
from search.compare.budgets import AnytimeMethod
from search.compare.efficiency import AxisEfficiency, MethodEfficiency
from search.compare.headline import MethodResult, Retrained, StudyResult
from search.compare.outcomes import Counts, MethodOutcomes, count
from search.compare.pairs import PairFinding
from search.compare.report_form import SCHEMA
from search.compare.statistics.anytime import Band
from search.compare.statistics.base import FloatArray, Interval
from search.compare.statistics.hypothesis_tests import RankTest
from search.compare.statistics.intervals import Distribution
from search.compare.statistics.targets import Ratio, SpeedUp
from search.compare.tables import Table, Value

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
    settings, rules, primary = analysis.protocol.settings, analysis.rules, analysis.primary
    found = analysis.conclusion
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
        declared=form.DeclaredForm(
            axis=settings.axis,
            pairs=analysis.protocol.pairs,
            alpha=settings.alpha,
            smallest_difference=settings.smallest_difference,
            meaningful=settings.meaningful,
            power=settings.power,
            retraining_seeds=settings.retrain.seeds,
            retraining_at_least=settings.retrain.at_least,
        ),
        verdict=form.VerdictForm(text=found.verdict, claims=found.claims, not_shown=found.not_shown),
        notes=tuple(blocks.NoteForm(kind=note.kind, text=note.text) for note in analysis.notes),
        primary=form.PrimaryForm(
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
        ),
        methods=tuple(
            _method(comparison, method, outcomes)
            for method, outcomes in zip(analysis.methods, analysis.outcomes, strict=True)
        ),
        pairs=tuple(_pair(pair) for pair in analysis.pairs),
        anytime=tuple(
            form.AnytimeForm(
                axis=entry.axis,
                declared=entry.declared,
                budget=entry.budget,
                methods=tuple(_anytime(method) for method in entry.methods),
            )
            for entry in analysis.anytime
        ),
        cuts=tuple(
            form.CutForm(
                axis=budget.axis,
                fraction=cut.fraction,
                position=cut.position,
                method=cut.method,
                values=None if cut.values is None else blocks.QuartilesForm(**asdict(cut.values)),
                missing=cut.missing,
            )
            for budget in analysis.cuts
            for cut in budget.cuts
        ),
        efficiency=form.TargetForm(
            target=analysis.efficiency.target,
            text=analysis.efficiency.text,
            methods=tuple(
                _efficiency(axis, method) for axis in analysis.efficiency.axes for method in axis.methods
            ),
        ),
        expected_best=_expected_best(analysis),
        regret=_regret(analysis),
        studies=tuple(_study(study) for study in analysis.studies),
        test_readings=tuple(_reading(reading) for reading in comparison.readings),
        protocol=tuple(blocks.EntryForm(**asdict(entry)) for entry in analysis.protocol.entries),
        space=tuple(blocks.EntryForm(**asdict(entry)) for entry in analysis.protocol.space),
        tables=tuple(table_form(table) for table in tables),
        spec=_mapping(comparison.spec),
        environment=_mapping(comparison.environment),
    )


def table_form(table: Table) -> blocks.TableForm:
    """A table as JSON has it."""
    return blocks.TableForm(
        key=table.key,
        title=table.title,
        caption=table.caption,
        exploratory=table.exploratory,
        columns=tuple(blocks.ColumnForm(**asdict(column)) for column in table.columns),
        values=tuple(tuple(_cell(cell.value) for cell in row) for row in table.rows),
        texts=tuple(tuple(cell.text for cell in row) for row in table.rows),
    )


def _cell(value: Value) -> Value:
    """A table's value; null for NaN or infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mapping(value: object) -> Json:
    """A mapping in terms of JSON; an empty one for anything else."""
    return {str(key): plain(entry) for key, entry in value.items()} if isinstance(value, Mapping) else {}


def _method(comparison: Comparison, method: MethodResult, outcomes: MethodOutcomes) -> form.MethodForm:
    settings = comparison.spec.get("methods")
    return form.MethodForm(
        method=method.method,
        settings=_mapping(settings.get(method.method) if isinstance(settings, Mapping) else None),
        replicates=method.replicates,
        score=_distribution(method.score),
        searched=_distribution(method.searched),
        selection_bias=_distribution(method.selection_bias),
        best_study=None if method.best is None else method.best.study.name,
        trials=_counts(outcomes.counts),
        shared_trials=outcomes.shared,
        epochs=outcomes.epochs,
        train_seconds=outcomes.train_seconds,
        sampler_seconds=outcomes.sampler_seconds,
        idle_seconds=outcomes.idle_seconds,
        edges=tuple(blocks.EdgeForm(**asdict(edge)) for edge in outcomes.edges),
    )


def _counts(counts: Counts) -> blocks.CountsForm:
    return blocks.CountsForm(
        total=counts.total,
        complete=counts.complete,
        pruned=counts.pruned,
        diverged=counts.diverged,
        failed=counts.failed,
        running=counts.running,
        waiting=counts.waiting,
        retried_attempts=counts.retried,
    )


def _interval(interval: Interval | None) -> blocks.IntervalForm | None:
    return None if interval is None else blocks.IntervalForm(**asdict(interval))


def _distribution(found: Distribution | None) -> blocks.DistributionForm | None:
    return None if found is None else blocks.DistributionForm.model_validate(asdict(found))


def _pair(pair: PairFinding) -> form.PairForm:
    result = pair.result
    return form.PairForm(
        first=result.first,
        second=result.second,
        outcome=pair.outcome,
        declared=pair.declared,
        replicates=result.replicates,
        difference=_interval(result.difference),
        superiority=_interval(result.superiority),
        superiority_all_pairs=_interval(result.superiority_all_pairs),
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


def _anytime(method: AnytimeMethod) -> form.AnytimeMethodForm:
    return form.AnytimeMethodForm(
        method=method.method,
        band=None if method.band is None else _band(method.band),
        curves=tuple(
            blocks.CurveForm(
                replicate=replicate,
                positions=_numbers(curve.positions),
                values=_numbers(curve.values),
                end=curve.end,
                area=method.areas.get(replicate),
            )
            for replicate, curve in method.curves.items()
        ),
    )


def _band(band: Band) -> blocks.BandForm:
    return blocks.BandForm(
        positions=_numbers(band.axis),
        median=_numbers(band.median),
        low_quartile=_numbers(band.low_quartile),
        high_quartile=_numbers(band.high_quartile),
        low=None if band.low is None else _numbers(band.low),
        high=None if band.high is None else _numbers(band.high),
        level=band.level,
    )


def _numbers(array: FloatArray) -> tuple[float, ...]:
    return tuple(array.tolist())


def _efficiency(axis: AxisEfficiency, method: MethodEfficiency) -> form.EfficiencyForm:
    success = _interval(method.success)
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
        speed_up=None if method.speed_up is None else _speed_up(method.speed_up),
    )


def _speed_up(found: SpeedUp) -> blocks.SpeedUpForm:
    return blocks.SpeedUpForm(
        ratio=_ratio(found.ratio),
        low=None if found.low is None else _ratio(found.low),
        high=None if found.high is None else _ratio(found.high),
        level=found.level,
        text=str(found),
    )


def _ratio(found: Ratio) -> blocks.CensoredForm:
    return blocks.CensoredForm(
        value=found.value, censored=found.bound == "at_least", bound=found.bound, text=str(found)
    )


def _expected_best(analysis: Analysis) -> form.ExpectedBestForm | None:
    found = analysis.expected_best
    if found is None:
        return None
    return form.ExpectedBestForm(
        trials=found.trials, replicates=found.replicates, expected=_numbers(found.values)
    )


def _regret(analysis: Analysis) -> form.RegretForm | None:
    found = analysis.regret
    if found is None:
        return None
    return form.RegretForm.model_validate(asdict(found))


def _study(study: StudyResult) -> form.StudyForm:
    return form.StudyForm(
        study=study.study.name,
        method=study.method,
        replicate=study.replicate,
        counted=study.counted,
        trials=_counts(count(study.study.trials)),
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
