"""What is told about a firing that is over: `shoal.notice/1`, and its form for Slack."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from search.progress import by_method

if TYPE_CHECKING:
    from storage.database import Database
    from storage.schedule_records import FiringRecord, ScheduleRecord

SCHEMA = "shoal.notice/1"
SERVE_VARIABLE = "SHOAL_SERVE_URL"
"""Where people reach `shoal serve`; notes link to it."""


@dataclass(frozen=True, slots=True)
class Results:
    """How far an experiment is, as a note tells it."""

    experiment_id: int
    metric: str
    direction: str | None
    best: Mapping[str, float | None] = field(default_factory=dict)
    """Method → its best value so far."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """Of all methods together, by state."""

    @property
    def all_failed(self) -> bool:
        """Trials have ended, and not one with a result."""
        good = self.trials.get("complete", 0) + self.trials.get("pruned", 0)
        return self.trials.get("failed", 0) > 0 and good == 0


def results_of(database: Database, experiment: str) -> Results | None:
    """The results of an experiment; None if it was never made."""
    from storage import queries
    from storage.errors import ExperimentNotFound
    from storage.experiments import Experiments

    try:
        record = Experiments(database).get(experiment)
    except ExperimentNotFound:
        return None
    rows = queries.progress(database, record.id)
    direction = queries.direction(database, record.id)
    methods = by_method(rows, record.spec, maximize=direction != "minimize")
    states = ("complete", "pruned", "failed", "running", "waiting")
    return Results(
        record.id,
        str(record.spec["metric"]),
        direction,
        {method.method: method.best for method in methods},
        {state: sum(getattr(method, state) for method in methods) for state in states},
    )


def notice_body(
    schedule: ScheduleRecord, firing: FiringRecord, id: str, results: Results | None = None
) -> str:
    """The note as JSON. It holds no secret: neither the webhook nor the database's URL."""
    body = {
        "schema": SCHEMA,
        "id": id,
        "schedule": schedule.name,
        "generation": firing.generation,
        "experiment": firing.experiment,
        "state": firing.state,
        "reason": firing.reason or "",
        "scheduled_for": _time(firing.scheduled_for),
        "started_at": _time(firing.started_at),
        "ended_at": _time(firing.ended_at),
        "seconds": round(firing.spent_seconds, 3),
        "manual": firing.manual,
        "missed": firing.missed,
        "attempts": firing.attempts,
        "metric": results and results.metric,
        "direction": results and results.direction,
        "best": dict(results.best) if results else {},
        "trials": dict(results.trials) if results else {},
        "report": firing.report and {"host": socket.gethostname(), "path": firing.report},
        "links": _links(results),
    }
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _links(results: Results | None) -> dict[str, str]:
    base = os.environ.get(SERVE_VARIABLE, "").rstrip("/")
    if not base.startswith(("http://", "https://")) or results is None:
        return {}
    return {"experiment": f"{base}/experiments/{results.experiment_id}"}


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def slack_body(notice: str) -> str:
    """The same note for a Slack webhook, by the template `slack.txt.j2`."""
    from search.schedules.templating import environment

    text = environment(finalize=_for_slack).get_template("slack.txt.j2").render(json.loads(notice))
    return json.dumps({"text": text.strip()}, ensure_ascii=False)


def _for_slack(value: object) -> object:
    """Every string that is put in: Slack reads links and mentions from `<`, `>` and `&`."""
    if not isinstance(value, str):
        return value
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
