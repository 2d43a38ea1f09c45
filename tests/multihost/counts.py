"""What a fault did to an experiment, counted from the database and from the trials' own notes."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from storage import queries
from storage.checker import check_history
from storage.database import Database
from storage.experiments import Experiments

FINAL = ("completed", "pruned", "failed", "given_up")
"""Events that end a trial for good; 'failed' attempts that are tried again are 'requeued'."""

ATTEMPTS = """
SELECT attempt.trial_id, attempt.number, attempt.state, worker.host, worker.process,
       extract(epoch FROM attempt.started_at)::float AS started,
       extract(epoch FROM attempt.ended_at)::float AS ended,
       (SELECT min(epoch) FROM lab.writes AS point
        WHERE point.trial_id = attempt.trial_id AND point.attempt = attempt.number) AS first_written,
       (SELECT value_json FROM trial_user_attributes AS noted
        WHERE noted.trial_id = attempt.trial_id AND noted.key = 'shoal:seed') AS seed
FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE study.experiment_id = :id ORDER BY attempt.trial_id, attempt.number
"""
WENT_ON = """
SELECT extract(epoch FROM max(begun.at))::float FROM (
    SELECT min(point.at) AS at FROM lab.writes AS point
    JOIN shoal.attempts AS attempt ON attempt.trial_id = point.trial_id AND attempt.number = point.attempt
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    WHERE study.experiment_id = :id AND attempt.number > 1
    GROUP BY attempt.id) AS begun
"""
LATE = """
SELECT count(*) FROM lab.writes AS point
JOIN shoal.attempts AS attempt ON attempt.trial_id = point.trial_id AND attempt.number = point.attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE study.experiment_id = :id AND point.at > attempt.ended_at
  AND CAST(point.by AS xid) <> attempt.xmin -- a write that ends its own attempt closes it first, all in one
"""
ENDS = """
SELECT trial_id, count(*) FROM shoal.events
WHERE experiment_id = :id AND kind IN ('completed', 'pruned', 'failed', 'given_up') GROUP BY trial_id
"""
HAPPENED = "SELECT kind, count(*) FROM shoal.events WHERE experiment_id = :id GROUP BY kind"


@dataclass(frozen=True, slots=True)
class Note:
    """One epoch that was trained."""

    host: str
    process: int
    seed: int
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt at a trial."""

    trial: int
    number: int
    state: str
    host: str
    process: int
    started: float
    ended: float | None
    first_written: int | None
    """The first epoch that it ever stored; None: it stored none."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """One scenario's row of the table."""

    scenario: str
    trials: int
    """The budget."""
    ended: int
    """Trials in a terminal state."""
    ended_twice: int
    epochs: int
    """Stored, of trials that are complete."""
    attempts: int
    lost: int
    """Attempts whose lease was lost."""
    refused: int
    """Writes that came after the lease was lost, and were refused."""
    late: int
    """Such writes that were not refused."""
    repeated: int
    """Epochs trained again because no checkpoint held them."""
    worst: int
    """The most of these that one interruption cost one trial."""
    allowed: int
    """Epochs of one checkpoint interval."""
    contradictions: Sequence[str]
    """What `storage.checker` found."""
    hosts: Mapping[str, int]
    """Attempts by machine."""
    went_on: float | None
    """Seconds from the fault until the last trial that was interrupted went on; None: none was."""
    seconds: float
    """From the fault to the experiment's end."""
    settings: Mapping[str, str] = field(default_factory=dict)

    def problems(self, epochs_of_trial: int) -> list[str]:
        """What must not be; empty if all is as promised."""
        wrong = [f"history: {found}" for found in self.contradictions]
        if self.ended != self.trials:
            wrong.append(f"{self.ended} trials ended of a budget of {self.trials}")
        if self.ended_twice:
            wrong.append(f"{self.ended_twice} trials have more than one end, or none")
        if self.epochs != self.trials * epochs_of_trial:
            wrong.append(f"{self.epochs} epochs stored instead of {self.trials * epochs_of_trial}")
        if self.late:
            wrong.append(f"{self.late} writes landed after their leases were lost")
        if self.worst > self.allowed:
            wrong.append(f"a trial lost {self.worst} epochs, a checkpoint interval has {self.allowed}")
        return wrong


def epochs_lost(attempts: Iterable[Tried], notes: Iterable[Note]) -> list[int]:
    """Of each attempt that another followed: epochs it had trained that the one after trained again.

    A function's trial is called again from its beginning, up to where its checkpoint was; so where an
    attempt went on is told by the first epoch that it stored, not by the first that it ran through.
    """
    by_seed: dict[int, list[Note]] = {}
    for note in notes:
        by_seed.setdefault(note.seed, []).append(note)
    by_trial: dict[int, list[Tried]] = {}
    for attempt in attempts:
        by_trial.setdefault(attempt.trial, []).append(attempt)
    losses = []
    for tried in by_trial.values():
        for place, attempt in enumerate(tried[:-1]):
            went_on = [later.first_written for later in tried[place + 1 :] if later.first_written is not None]
            if went_on:
                reached = _reached(attempt, tried[place + 1 :], by_seed.get(attempt.seed, ()))
                losses.append(max(0, reached - (went_on[0] - 1)))
    return losses


def _reached(attempt: Tried, later: Sequence[Tried], notes: Iterable[Note]) -> int:
    """The last epoch that an attempt trained, also after its lease was lost."""
    process = (attempt.host, attempt.process)
    until = min((one.started for one in later if (one.host, one.process) == process), default=math.inf)
    mine = [
        note.epoch
        for note in notes
        if (note.host, note.process) == process and attempt.started <= note.at < until
    ]
    return max(mine, default=0)


def count(
    database: Database, name: str, notes: Path, *, scenario: str, struck: float, allowed: int,
    settings: Mapping[str, str],
) -> Counts:  # fmt: skip
    """Look at an experiment that has ended. `struck`: when it was, in seconds since 1970."""
    experiment = Experiments(database).get(name)
    with database.begin() as connection:
        values = {"id": experiment.id}
        attempts = [
            Tried(*row[:-1], int(json.loads(row[-1]))) for row in connection.execute(text(ATTEMPTS), values)
        ]
        went_on = connection.scalar(text(WENT_ON), values)
        late = int(connection.scalar(text(LATE), values) or 0)
        ends = dict(map(tuple, connection.execute(text(ENDS), values)))
        happened = dict(map(tuple, connection.execute(text(HAPPENED), values)))
    rows = queries.trials(database, experiment.id)
    losses = epochs_lost(attempts, _read(notes))
    return Counts(
        scenario=scenario,
        trials=_budget(experiment.spec),
        ended=sum(row.state in ("complete", "pruned", "failed") for row in rows),
        ended_twice=sum(ends.get(row.trial_id, 0) != 1 for row in rows),
        epochs=sum(row.epochs for row in rows if row.state == "complete"),
        attempts=len(attempts),
        lost=sum(attempt.state == "lost" for attempt in attempts),
        refused=happened.get("refused", 0),
        late=late,
        repeated=sum(losses),
        worst=max(losses, default=0),
        allowed=allowed,
        contradictions=[str(found) for found in check_history(database, experiment.id, at_rest=True)],
        hosts=dict(Counter(attempt.host for attempt in attempts)),
        went_on=None if went_on is None else round(went_on - struck, 1),
        seconds=round(time.time() - struck, 1),
        settings=dict(settings),
    )


def _budget(spec: Mapping[str, Any]) -> int:
    return int(spec["budget"]["trials"]) * len(spec["methods"]) * int(spec["replicates"])


def _read(path: Path) -> list[Note]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        host, process, seed, epoch, at = line.split()
        found.append(Note(host, int(process), int(seed), int(epoch), float(at)))
    return found


COLUMNS = {
    "scenario": "scenario",
    "ended": "trials ended",
    "trials": "budget",
    "ended_twice": "≠ 1 end",
    "epochs": "epochs",
    "attempts": "attempts",
    "lost": "leases lost",
    "refused": "writes refused",
    "late": "late writes",
    "repeated": "epochs repeated",
    "worst": "worst",
    "allowed": "interval",
    "went_on": "s until it goes on",
    "seconds": "s to the end",
}


def table(rows: Sequence[Counts]) -> str:
    """For people: a line per scenario, and below it what was set."""
    cells = [list(COLUMNS.values())]
    cells += [
        ["–" if (cell := asdict(row)[column]) is None else str(cell) for column in COLUMNS] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    told = " ".join(f"{name}={value}" for row in rows[:1] for name, value in row.settings.items())
    return "\n".join([*lines, f"set: {told}"])


def write(rows: Sequence[Counts], path: Path) -> None:
    """The same as JSON, for programs."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
