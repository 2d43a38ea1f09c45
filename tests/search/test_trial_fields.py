"""Every field of a trial goes under its own name."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from search.trial_fields import trial_fields
from storage.records import TrialRow

NOON = datetime(2000, 1, 1, 12, tzinfo=UTC)
NAMES = {"study": "study_name", "trial": "number", "device_seconds": "seconds"}
"""Those that scripts know by another name than the row's."""


def row_of(**changed: Any) -> TrialRow:
    values: dict[str, Any] = {
        field.name: f"the {field.name}" for field in dataclasses.fields(TrialRow) if field.init
    }
    return TrialRow(**{**values, "started_at": NOON, "ended_at": None, **changed})


def test_each_says_its_own() -> None:
    fields = trial_fields(row_of())
    times = {name: fields.pop(name) for name in ("started_at", "ended_at")}
    assert times == {"started_at": "2000-01-01T12:00:00+00:00", "ended_at": None}
    assert fields == {name: f"the {NAMES.get(name, name)}" for name in fields}
    assert len(fields) == 14
