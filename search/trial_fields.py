"""A trial's fields under the names that scripts know, the same for `--json` and for exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.records import TrialRow


def trial_fields(row: TrialRow) -> dict[str, object]:
    """All but the experiment and the parameters. Times are in ISO 8601, durations in seconds."""
    return {
        "study": row.study_name,
        "method": row.method,
        "replicate": row.replicate,
        "trial": row.number,
        "state": row.state,
        "diverged": row.diverged,
        "value": row.value,
        "epochs": row.epochs,
        "device_seconds": row.seconds,
        "sampler_seconds": row.sampler_seconds,
        "attempts": row.attempts,
        "shared_with": row.shared_with,
        "shared_epochs": row.shared_epochs,
        "reason": row.reason,
        "started_at": row.started_at.isoformat() if row.started_at else None,
        "ended_at": row.ended_at.isoformat() if row.ended_at else None,
    }
