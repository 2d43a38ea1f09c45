"""How the experiment was run and what was declared, with actual values (T1, T2).

Everything is read from the stored file, the recorded environment and the trials, so that an old
experiment's report says what was done then, not what today's defaults are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from search.compare.base import Comparison
from search.compare.budgets import Axis
from search.compare.execution import execution_entries, most_in_flight
from search.compare.pairs import declared_pairs
from search.evidence import REPLICATES_FOR_A_CLAIM, TRIALS_FOR_A_COMPARISON
from search.experiment.settings import ComparisonSettings
from search.formats import NOTHING, format_time, format_value

LEVELS_SHOWN = 8
"""Most levels of a grid's axis that are written out."""

LEVELS = {
    "offset": "levels in equal cells of each range, at one random offset per replicate and dimension",
    "centred": "levels in the middles of equal cells of each range",
    "ends": "levels from one end of each range to the other",
    "given": "levels as the file names them",
}
"""`methods.grid.levels` in words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a section, what it is about, and what it is in words."""

    section: str
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What a reader needs to judge the comparison, or to run it again."""

    settings: ComparisonSettings
    """As declared in the file; the defaults of an experiment that is older than the declaration."""
    pairs: tuple[tuple[str, str], ...]
    """The declared pairs of methods that were run."""
    pruner: str
    """Its name; `none` where nothing is pruned."""
    entries: tuple[Entry, ...]
    """T1, in the order to print."""
    space: tuple[Entry, ...]
    """T2: `section` is the dimension; `space` what may be searched, `grid` what the grid took of it."""

    @property
    def declared_axis(self) -> Axis:
        """What budgets are compared on first."""
        return self.settings.axis


def protocol(comparison: Comparison) -> Protocol:
    """The protocol with its actual values."""
    spec = comparison.spec
    # By JSON, which knows no tuples: the pairs are lists in a stored file.
    settings = ComparisonSettings.model_validate_json(json.dumps(spec.get("comparison") or {}))
    pairs = declared_pairs(settings.pairs, comparison.methods)
    pruner = _section(spec, "pruner")
    return Protocol(
        settings=settings,
        pairs=pairs,
        pruner=str(pruner.get("name", "none")),
        entries=(
            *_design(comparison, pruner),
            *_declared(comparison, settings, pairs),
            *_methods(comparison),
            *(Entry("execution", name, text) for name, text in execution_entries(comparison)),
            *_environment(comparison.environment),
        ),
        space=_space(comparison),
    )


def _section(spec: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = spec.get(name)
    if isinstance(found, Mapping):
        return found
    return {} if found is None else {"name": found}


def _design(comparison: Comparison, pruner: Mapping[str, object]) -> list[Entry]:
    spec = comparison.spec
    data, budget = _section(spec, "data"), _section(spec, "budget")
    epochs = budget.get("epochs")
    better = "larger" if comparison.direction == "maximize" else "smaller"
    seed = format_value(spec.get("seed"))
    limit = "no limit" if epochs is None else format_value(epochs)
    known = [
        ("experiment", comparison.experiment),
        ("made", format_time(comparison.created_at)),
        ("state", f"{comparison.state} at {format_time(comparison.collected_at)}"),
        ("metric", f"{comparison.judged}, {better} is better"),
        *_trained(spec, data),
        ("fixed", in_line(_section(spec, "fixed")) or "nothing"),
        ("methods", ", ".join(comparison.methods) or NOTHING),
        ("replicates", str(comparison.replicates)),
        (
            "budget per study",
            f"{format_value(budget.get('trials'))} trials; epochs: {limit}; seconds: no limit",
        ),
        ("pruner", f"{in_line(pruner) or 'none'}; the same for all methods"),
        (
            "seeds",
            f"all from {seed}; a trial's depends on its replicate and number alone: methods share them",
        ),
        (
            "failures",
            "a diverged trial counts, at the worst value; a failed one is repeated with its seed and is free",
        ),
    ]
    return [Entry("design", name, text) for name, text in known]


def _trained(spec: Mapping[str, object], data: Mapping[str, object]) -> list[tuple[str, str]]:
    """What is trained: images and a network, or an objective of the user's own."""
    if objective := in_line(_section(spec, "objective")):
        return [("objective", objective)]
    split = (
        f"{format_value(data.get('validation'))} held out by class, anew in each replicate, for all methods"
    )
    return [
        ("data", in_line(data) or NOTHING),
        ("split", split if "validation" in data else NOTHING),
        ("model", in_line(_section(spec, "model")) or NOTHING),
    ]


def _declared(
    comparison: Comparison, settings: ComparisonSettings, pairs: tuple[tuple[str, str], ...]
) -> list[Entry]:
    named = ", ".join(f"{first} – {second}" for first, second in pairs) or "none"
    every = " (all: the file names none)" if settings.pairs is None and pairs else ""
    seeds = settings.retrain.seeds
    known = [
        ("axis", settings.axis),
        ("pairs", named + every),
        ("alpha", f"{settings.alpha:g}, two-sided, over all declared pairs together (Holm)"),
        ("smallest difference", f"{settings.smallest_difference:g} in {comparison.metric}"),
        ("meaningful", f"P(A > B) that can exceed {settings.meaningful:g} (Bouthillier et al. 2021)"),
        ("power", f"{settings.power:g}"),
        (
            "retraining",
            "none"
            if seeds == 0
            else f"each study's winner with {seeds} fresh seed{'' if seeds == 1 else 's'}"
            + ("" if comparison.is_function else ", scored on the sealed test set")
            + f"; it counts with {min(seeds, settings.retrain.at_least)} of them or more",
        ),
        ("replicates for a claim", str(REPLICATES_FOR_A_CLAIM)),
        ("trials for more than a demonstration", str(TRIALS_FOR_A_COMPARISON)),
    ]
    return [Entry("declared", name, text) for name, text in known]


def _methods(comparison: Comparison) -> list[Entry]:
    settings = _section(comparison.spec, "methods")
    entries = []
    for method in comparison.methods:
        own = settings.get(method)
        own = own if isinstance(own, Mapping) else {}
        in_flight = own.get("in_flight")
        at_once = "any number of" if in_flight is None else format_value(in_flight)
        rest = in_line({name: value for name, value in own.items() if name != "in_flight"})
        trials = "trial" if in_flight == 1 else "trials"
        most = most_in_flight(comparison, method)
        in_fact = "" if most is None else f" (in fact {most} at most)"
        text = f"{at_once} {trials} of a study at once{in_fact}{'; ' if rest else ''}{rest}"
        if method == "grid":
            text += f"; {LEVELS.get(str(own.get('levels', 'given')), LEVELS['given'])}"
        entries.append(Entry("methods", method, text))
    return entries


def _environment(environment: Mapping[str, object]) -> list[Entry]:
    return [
        Entry("environment", str(name), in_line(value) if isinstance(value, Mapping) else _value(value))
        for name, value in environment.items()
    ]


def _space(comparison: Comparison) -> tuple[Entry, ...]:
    entries = []
    for name, dimension in _section(comparison.spec, "space").items():
        text = in_line(dimension) if isinstance(dimension, Mapping) else _value(dimension)
        entries.append(Entry(str(name), "space", text or NOTHING))
        if levels := _levels(comparison, str(name)):
            entries.append(Entry(str(name), "grid", levels))
    return tuple(entries)


def _levels(comparison: Comparison, dimension: str) -> str:
    """What the grids took of the dimension; of levels that differ by replicate, the first one's."""
    per_study: list[tuple[object, ...]] = []
    for study in comparison.studies_of("grid"):
        values = dict.fromkeys(t.params[dimension] for t in study.trials if dimension in t.params)
        if values:
            per_study.append(tuple(sorted(values, key=_order)))
    if not per_study:
        return ""
    first = per_study[0]
    shown = ", ".join(format_value(value) for value in first[:LEVELS_SHOWN])
    more = f", … {len(first)} in all" if len(first) > LEVELS_SHOWN else ""
    differ = "; other levels in other replicates" if len(set(per_study)) > 1 else ""
    return f"{shown}{more}{differ}"


def _order(value: object) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def in_line(section: Mapping[str, object], prefix: str = "") -> str:
    """A nested mapping in one line, `name: value` by semicolons; what is not set is left out."""
    parts = []
    for key, value in section.items():
        if value is None or (isinstance(value, Mapping) and not value):
            continue
        if isinstance(value, Mapping):
            parts.append(in_line(value, f"{prefix}{key}."))
        elif prefix == "" and key == "name":
            parts.append(_value(value))
        else:
            parts.append(f"{prefix}{key}: {_value(value)}")
    return "; ".join(part for part in parts if part)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(format_value(entry) for entry in value) or NOTHING
    return format_value(value)
