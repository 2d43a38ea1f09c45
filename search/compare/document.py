"""The report as a JSON document: the keys that programs may rely on.

`SCHEMA` names the version; a key is never renamed or given another meaning within a version, new
keys may be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from search.compare.base import Comparison, Reading
from search.compare.summary import Counts, Incumbent, MethodSummary, Spread, StudySummary, Summary

SCHEMA = "shoal.report/1"

Json = dict[str, object]


def document(comparison: Comparison, summary: Summary) -> Json:
    """Everything that `report.json` holds.

    `methods[].trials.complete` leaves out diverged trials, which stand beside it; `best` is the
    spread of the incumbents' values over replicates; `curve` is best so far against epochs spent;
    `device_seconds` adds up all replicates.
    """
    return {
        "schema": SCHEMA,
        "experiment": comparison.experiment,
        "state": comparison.state,
        "created_at": comparison.created_at.isoformat(),
        "collected_at": comparison.collected_at.isoformat(),
        "metric": {"name": comparison.metric, "direction": comparison.direction, "on": "validation"},
        "replicates": comparison.replicates,
        "common_epochs": summary.common_epochs,
        "notes": [{"kind": note.kind, "text": note.text} for note in summary.notes],
        "methods": [_method(method, comparison) for method in summary.methods],
        "studies": [_study(study) for study in summary.studies],
        "test_readings": [_reading(reading) for reading in comparison.readings],
        "spec": plain(comparison.spec),
        "environment": plain(comparison.environment),
    }


def to_json(document: Json) -> str:
    """The document as text, readable and with keys in our order; refuses numbers that JSON can't hold."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: object) -> object:
    """The value in terms of JSON; what JSON doesn't know becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _method(method: MethodSummary, comparison: Comparison) -> Json:
    settings = comparison.spec.get("methods")
    return {
        "method": method.method,
        "settings": plain(settings.get(method.method, {})) if isinstance(settings, Mapping) else {},
        "replicates": method.replicates,
        "best": _spread(method.best),
        "at_common_epochs": _spread(method.at_common_epochs),
        "trials": _counts(method.counts),
        "epochs": method.epochs,
        "device_seconds": method.seconds,
        "best_trial": _incumbent(method.incumbent),
        "curve": [
            {"epochs": point.epochs, "median": point.median, "min": point.low, "max": point.high}
            for point in method.curve
        ],
    }


def _study(study: StudySummary) -> Json:
    return {
        "study": study.study.name,
        "method": study.study.method,
        "replicate": study.study.replicate,
        "trials": _counts(study.counts),
        "epochs": study.epochs,
        "device_seconds": study.seconds,
        "best_trial": _incumbent(study.incumbent),
        "curve": [{"epochs": point.epochs, "value": point.value} for point in study.curve],
    }


def _spread(spread: Spread | None) -> Json | None:
    if spread is None:
        return None
    return {
        "n": spread.n,
        "mean": spread.mean,
        "sd": spread.sd,
        "median": spread.median,
        "min": spread.low,
        "max": spread.high,
        "values": list(spread.values),
    }


def _counts(counts: Counts) -> Json:
    return {
        "total": counts.total,
        "complete": counts.complete,
        "pruned": counts.pruned,
        "diverged": counts.diverged,
        "failed": counts.failed,
        "running": counts.running,
        "waiting": counts.waiting,
        "retried_attempts": counts.retried,
    }


def _incumbent(incumbent: Incumbent | None) -> Json | None:
    if incumbent is None:
        return None
    return {
        "replicate": incumbent.replicate,
        "trial": incumbent.trial.number,
        "value": incumbent.value,
        "epochs": incumbent.trial.epochs,
        "params": plain(incumbent.trial.params),
    }


def _reading(reading: Reading) -> Json:
    return {
        "method": reading.method,
        "replicate": reading.replicate,
        "trial": reading.trial,
        "seed": reading.seed,
        "metrics": plain(reading.metrics),
        "validation": plain(reading.validation),
        "epochs": reading.epochs,
        "images": reading.images,
        "read_at": reading.read_at.isoformat(),
    }
