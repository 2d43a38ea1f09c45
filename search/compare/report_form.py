"""The form of `report.json`, version 2: what each key holds, for programs that read reports.

`report.schema.json` beside this file is made from these classes (a test keeps them equal). Numbers
are unrounded and in the metric's own unit; null stands where there is nothing. Keys are only ever
added within a version.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from search.compare.base import Direction, Purpose
from search.compare.budgets import Axis
from search.compare.primary import OutcomeKind
from search.compare.report_blocks import (
    BandForm,
    CountsForm,
    CurveForm,
    DistributionForm,
    EdgeForm,
    EntryForm,
    Form,
    IntervalForm,
    NoteForm,
    QuartilesForm,
    SpeedUpForm,
    TableForm,
)
from search.compare.statistics.hypothesis_tests import RankTestMethod, RankTestName
from search.compare.statistics.verdict import Label, Verdict

SCHEMA = "shoal.report/2"


class MetricForm(Form):
    """What is judged."""

    name: str
    direction: Direction
    scale: float
    """Sentences and tables show differences times this."""
    unit: str
    """The unit after scaling; empty for none."""


class ReplicatesForm(Form):
    """Which replicates there are."""

    run: int
    """Different replicates with a study."""
    counted: tuple[int, ...]
    """Those that are compared: all, or the whole ones of an experiment that goes on."""


class DeclaredForm(Form):
    """What the experiment file declared before the run."""

    axis: Axis
    pairs: tuple[tuple[str, str], ...]
    alpha: float
    smallest_difference: float
    meaningful: float
    power: float
    retraining_seeds: int
    retraining_at_least: int
    """Seeds with which a winner counts, if not all finish."""


class VerdictForm(Form):
    """The verdict in words."""

    text: str
    claims: bool
    """Whether any difference between declared pairs is claimed."""
    not_shown: tuple[str, ...]


class ValueForm(Form):
    """One study's value."""

    method: str
    replicate: int
    value: float


class LackingForm(Form):
    """A winner that was not retrained with all seeds."""

    study: str
    seeds: int
    """Those that finished."""
    failed: int
    """Retrainings of the study that failed for good."""


class PrimaryForm(Form):
    """The outcome that declared pairs are compared on."""

    kind: OutcomeKind
    """`retrained`: mean test metric of winners trained again; `searched`: best validation value."""
    title: str
    text: str
    axis: Axis
    budget: float | None
    """The common budget at which values were taken; null: of whole studies."""
    retrained: int
    """Counted studies whose winner was retrained with all seeds."""
    to_retrain: int
    ranked: int
    """Those retrained with at least `seeds_needed` seeds."""
    seeds_needed: int
    """0: no winner was to be retrained."""
    lacking: tuple[LackingForm, ...]
    common_budget: float | None
    """What all counted studies have spent."""
    beyond_budget: tuple[str, ...]
    """Ranked studies whose winner was found after it."""
    missing: tuple[str, ...]
    """Counted studies without a value."""
    values: tuple[ValueForm, ...]


class MethodForm(Form):
    """One method over its replicates."""

    method: str
    settings: dict[str, Any]
    replicates: int
    """Counted ones."""
    score: DistributionForm | None
    """The primary outcome."""
    searched: DistributionForm | None
    selection_bias: DistributionForm | None
    """Positive flatters."""
    best_study: str | None
    trials: CountsForm
    shared_trials: int
    epochs: int
    train_seconds: float
    sampler_seconds: float
    idle_seconds: float | None
    edges: tuple[EdgeForm, ...]


class TestForm(Form):
    """A rank test, two-sided."""

    test: RankTestName
    method: RankTestMethod
    p: float


class PairForm(Form):
    """One pair of methods on one outcome; positive differences favour the first."""

    first: str
    second: str
    outcome: OutcomeKind
    declared: bool
    """Anything else is exploratory."""
    replicates: int
    difference: IntervalForm | None
    superiority: IntervalForm | None
    """P(first better) within a replicate."""
    superiority_all_pairs: IntervalForm | None
    """P(first better) for two runs that share nothing."""
    test: TestForm | None
    """Null with fewer replicates than a claim takes."""
    holm_p: float | None
    pairs_tested: int
    label: Label | None
    verdict: Verdict
    better: str | None
    text: str


class AnytimeMethodForm(Form):
    """One method's curves."""

    method: str
    band: BandForm | None
    curves: tuple[CurveForm, ...]


class AnytimeForm(Form):
    """Best so far against one budget."""

    axis: Axis
    declared: bool
    budget: float | None
    methods: tuple[AnytimeMethodForm, ...]


class CutForm(Form):
    """One method after a share of one budget."""

    axis: Axis
    fraction: float
    position: float
    method: str
    values: QuartilesForm | None
    missing: tuple[int, ...]


class EfficiencyForm(Form):
    """One method's way to the target on one axis."""

    axis: Axis
    method: str
    budget: float
    """Where times are censored."""
    times: tuple[float, ...]
    reached: tuple[bool, ...]
    success: IntervalForm
    expected_running_time: float | None
    median_time: float | None
    """Kaplan and Meier's; null if fewer than half reached the target."""
    speed_up: SpeedUpForm | None


class TargetForm(Form):
    """Times to the target."""

    target: float | None
    text: str
    methods: tuple[EfficiencyForm, ...]


class ExpectedBestForm(Form):
    """Of n random trials."""

    trials: int
    replicates: int
    expected: tuple[float, ...]
    """Element n − 1 belongs to n trials."""


class MethodRegretForm(Form):
    """One method's distance to the best value known."""

    method: str
    regret: DistributionForm
    normalised: DistributionForm | None


class RegretForm(Form):
    """Distances to the best value known."""

    best_known: float
    median_random: float | None
    methods: tuple[MethodRegretForm, ...]


class WinnerForm(Form):
    """A study's incumbent."""

    trial: int
    epochs: int
    value: float
    params: dict[str, Any]


class RetrainedForm(Form):
    """An incumbent trained again, one value per seed."""

    trial: int
    seeds: tuple[int, ...]
    test: tuple[float, ...]
    validation: tuple[float, ...]
    test_mean: float
    validation_mean: float


class StudyForm(Form):
    """One study: a method in one replicate."""

    study: str
    method: str
    replicate: int
    counted: bool
    trials: CountsForm
    winner: WinnerForm | None
    searched: float | None
    at_budget: float | None
    retrained: RetrainedForm | None
    selection_bias: float | None


class ReadingForm(Form):
    """One reading of the sealed test set."""

    method: str
    replicate: int
    trial: int
    seed: int
    purpose: Purpose
    metrics: dict[str, float | None]
    validation: dict[str, float | None]
    epochs: int
    images: int
    read_at: str


class Report(Form):
    """All that a report says; tables and figures are made of the same numbers."""

    schema_: Literal["shoal.report/2"] = Field(alias="schema")
    """Name and version of this form."""
    experiment: str
    state: str
    created_at: str
    collected_at: str
    metric: MetricForm
    replicates: ReplicatesForm
    declared: DeclaredForm
    verdict: VerdictForm
    notes: tuple[NoteForm, ...]
    primary: PrimaryForm
    methods: tuple[MethodForm, ...]
    pairs: tuple[PairForm, ...]
    anytime: tuple[AnytimeForm, ...]
    cuts: tuple[CutForm, ...]
    efficiency: TargetForm
    expected_best: ExpectedBestForm | None
    regret: RegretForm | None
    studies: tuple[StudyForm, ...]
    test_readings: tuple[ReadingForm, ...]
    protocol: tuple[EntryForm, ...]
    space: tuple[EntryForm, ...]
    tables: tuple[TableForm, ...]
    """All tables of the report, those of what was learned of the space included."""
    spec: dict[str, Any]
    """The experiment file as it was checked and stored."""
    environment: dict[str, Any]


def report_schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **Report.model_json_schema(mode="serialization", by_alias=True),
    }
