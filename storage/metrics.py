"""What the exporter of metrics asks the database: a few aggregates over the experiments of interest.

The number of statements does not grow with trials, experiments or time. What they cost does, so two
things are remembered between readings: the numbers of experiments that have ended, which are read
again only now and then, and the counts of events that are old enough to stand. As `storage.queries`
this reads Optuna's tables as they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from storage.control import control_key
from storage.database import Database, lock_number
from storage.errors import DatabaseUnsuitable
from storage.experiments import HELD
from storage.metric_values import (
    AttemptNumbers,
    CurveNumbers,
    ExperimentHead,
    ExperimentNumbers,
    NoticeNumbers,
    PruningNumbers,
    ScheduleNumbers,
    ServerNumbers,
    Snapshot,
    ToldExperiment,
    ToldState,
    TrialNumbers,
)
from storage.queries import RESTS, STATES, TRAINED, VALUE

MOST_EXPERIMENTS = 100
"""Experiments that are told of one by one: those under way first, then those that changed last."""
RECENT_DAYS = 14
"""An experiment that has not changed for so long is told of no more, unless it is under way."""
SETTLED_SECONDS = 300.0
"""For so long the numbers of an experiment that has ended stand; only foreign clients change them."""
STANDING = "10 minutes"
"""Events of which nothing older can appear any more: no transaction of ours lasts nearly as long."""

UNDER_WAY = ("created", "running")

PAUSED: ToldState = "paused"
"""State of a trial that rests, to Optuna one that waits."""

TOLD = ("expired", "given_up", "refused")
"""Kinds of events that are counted."""

SERVER = """
SELECT to_regclass('trials') IS NOT NULL AND to_regclass('studies') IS NOT NULL AS optuna,
       to_regclass('shoal.experiments') IS NOT NULL AS ours,
       to_regclass('shoal.firings') IS NOT NULL AS schedules,
       pg_database_size(current_database()) AS size_bytes,
       (SELECT CAST(sum(numbackends) AS integer) FROM pg_stat_database) AS connections,
       CAST(current_setting('max_connections') AS integer) AS connections_limit,
       -- Who may not see others' transactions sees none of them, which would look like good news.
       CASE WHEN pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN (
           SELECT CAST(coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) AS float8)
           FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
       ) END AS oldest_transaction_seconds
"""

HEADS = f"""
SELECT id, name, state, stop_requested, coalesce(spec ->> 'metric', 'value') AS metric,
       CAST(extract(epoch FROM clock_timestamp() - updated_at) AS float8) AS changed_seconds, updated_at
FROM shoal.experiments
WHERE state = ANY(:under_way) OR updated_at > now() - interval '{RECENT_DAYS} days'
ORDER BY state = ANY(:under_way) DESC, updated_at DESC, id DESC LIMIT {MOST_EXPERIMENTS}
"""  # noqa: S608 (here and below: only our own constants are put in)

STATE_COUNTS = "SELECT state, count(*) FROM shoal.experiments GROUP BY state"

COUNTED = f"""
SELECT study.experiment_id, study.method, study.role, told.state, count(*) AS trials,
       max(wanted.sign * ({VALUE})) FILTER (WHERE {TRAINED}) * max(wanted.sign) AS best,
       max(wanted.sign) AS sign
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN trials AS trial ON trial.study_id = optuna.study_id
LEFT JOIN study_directions AS direction ON direction.study_id = optuna.study_id AND direction.objective = 0
CROSS JOIN LATERAL (
    SELECT CASE WHEN direction.direction = 'MAXIMIZE' THEN 1 ELSE -1 END AS sign
) AS wanted
CROSS JOIN LATERAL (SELECT CASE WHEN {RESTS} THEN '{PAUSED}' ELSE trial.state::text END AS state) AS told
LEFT JOIN trial_values AS result ON result.trial_id = trial.trial_id AND result.objective = 0
WHERE study.experiment_id = ANY(:ids)
GROUP BY study.experiment_id, study.method, study.role, told.state
ORDER BY study.experiment_id, study.method, study.role, told.state
"""  # noqa: S608

TRAINED_SO_FAR = """
SELECT study.experiment_id, study.method, study.role, count(*) AS epochs, sum(epoch.seconds) AS seconds,
       CAST(extract(epoch FROM clock_timestamp() - max(epoch.written_at)) AS float8) AS quiet_seconds
FROM shoal.experiment_studies AS study JOIN shoal.epochs AS epoch ON epoch.study_id = study.id
WHERE study.experiment_id = ANY(:ids)
GROUP BY study.experiment_id, study.method, study.role
ORDER BY study.experiment_id, study.method, study.role
"""

ATTEMPTED = """
SELECT study.experiment_id, study.method,
       count(*) FILTER (WHERE attempt.state = 'complete') AS complete,
       count(*) FILTER (WHERE attempt.state = 'pruned') AS pruned,
       count(*) FILTER (WHERE attempt.state = 'failed') AS failed,
       count(*) FILTER (WHERE attempt.state = 'released') AS released,
       count(*) FILTER (WHERE attempt.state = 'lost') AS lost,
       count(*) FILTER (WHERE attempt.state = 'running' AND attempt.deadline >= clock_timestamp()) AS running,
       count(*) FILTER (WHERE attempt.state = 'running' AND attempt.deadline < clock_timestamp()) AS overdue,
       coalesce(sum(attempt.sampler_seconds), 0) AS sampler_seconds,
       array_remove(array_agg(DISTINCT CASE WHEN attempt.state = 'running'
           AND attempt.deadline >= clock_timestamp() THEN attempt.worker_id END), NULL) AS workers,
       CAST(extract(epoch FROM clock_timestamp() - max(attempt.ended_at)) AS float8) AS quiet_seconds
FROM shoal.experiment_studies AS study JOIN shoal.attempts AS attempt ON attempt.study_id = study.id
WHERE study.experiment_id = ANY(:ids)
GROUP BY study.experiment_id, study.method
ORDER BY study.experiment_id, study.method
"""

# What a pruned trial was to train: its own epochs where they are searched, else the experiment's.
# Optuna stores a choice as its place in the list.
SAVED = """
SELECT study.experiment_id, study.method,
       sum(greatest(0, planned.epochs - trained.epochs)) AS epochs,
       coalesce(sum(greatest(0, planned.epochs - trained.epochs) * trained.seconds / trained.epochs), 0)
           AS seconds
FROM shoal.experiment_studies AS study
JOIN shoal.experiments AS experiment ON experiment.id = study.experiment_id
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN trials AS trial ON trial.study_id = optuna.study_id
CROSS JOIN LATERAL (
    SELECT max(epoch) AS epochs, sum(seconds) AS seconds FROM shoal.epochs WHERE trial_id = trial.trial_id
) AS trained
LEFT JOIN trial_params AS param ON param.trial_id = trial.trial_id AND param.param_name = 'epochs'
CROSS JOIN LATERAL (
    SELECT coalesce(
        CASE WHEN CAST(param.distribution_json AS json) ->> 'name' = 'CategoricalDistribution'
             THEN CAST(CAST(param.distribution_json AS json) -> 'attributes' -> 'choices'
                       ->> CAST(param.param_value AS integer) AS float8)
             ELSE param.param_value END,
        CAST(experiment.spec -> 'fixed' ->> 'epochs' AS float8),
        CASE WHEN experiment.spec ->> 'objective' IS NULL THEN :epochs ELSE :function_epochs END) AS epochs
) AS planned
WHERE study.experiment_id = ANY(:ids) AND study.role = 'search' AND trial.state = 'PRUNED'
  AND trained.epochs > 0
GROUP BY study.experiment_id, study.method
ORDER BY study.experiment_id, study.method
"""

HAPPENED = """
SELECT experiment_id, kind, count(*) FROM shoal.events
WHERE id > :after AND id <= :until AND kind = ANY(:told)
GROUP BY experiment_id, kind
"""

LIMITS = f"""
SELECT coalesce(max(id), 0) AS newest,
       coalesce((SELECT id FROM shoal.events WHERE at < clock_timestamp() - interval '{STANDING}'
                 ORDER BY id DESC LIMIT 1), 0) AS standing
FROM shoal.events
"""  # noqa: S608
"""The newest event, and the newest that stands: found from the end of the log backwards."""

SCHEDULES = f"""
SELECT schedule.id, schedule.name, schedule.cron, schedule.timezone, schedule.paused_at IS NOT NULL AS paused,
       schedule.decided_until, clock_timestamp() AS now,
       CAST(coalesce((SELECT max(extract(epoch FROM clock_timestamp() - firing.created_at))
                      FROM shoal.firings AS firing
                      WHERE firing.schedule_id = schedule.id AND firing.state = 'queued'), 0) AS float8)
           AS queued_seconds
FROM shoal.schedules AS schedule WHERE schedule.removed_at IS NULL
ORDER BY schedule.id DESC LIMIT {MOST_EXPERIMENTS}
"""  # noqa: S608

OF_SCHEDULES = ("name", "cron", "timezone", "paused", "decided_until", "now", "queued_seconds")

FIRINGS = "SELECT schedule_id, state, count(*) FROM shoal.firings GROUP BY schedule_id, state"

NOTICES = """
SELECT count(*) FILTER (WHERE sent_at IS NULL AND given_up_at IS NULL) AS unsent,
       count(*) FILTER (WHERE given_up_at IS NOT NULL) AS given_up,
       CAST(coalesce(max(extract(epoch FROM clock_timestamp() - created_at))
                     FILTER (WHERE sent_at IS NULL AND given_up_at IS NULL), 0) AS float8) AS oldest_seconds
FROM shoal.notices
"""


class Numbers:
    """Reads what there is to tell. One thread at a time.

    `epochs` and `function_epochs`: what a trial trains where its file says nothing. Raises
    `DatabaseUnreachable`, and `DatabaseUnsuitable` before the tables are made.
    """

    def __init__(
        self,
        database: Database,
        *,
        epochs: int,
        function_epochs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self._defaults = {"epochs": epochs, "function_epochs": function_epochs}
        self._clock = clock
        self._settled: dict[int, _Settled] = {}
        self._standing = 0
        self._counts: Counter[tuple[int, str]] = Counter()

    def read(self) -> Snapshot:
        """Everything, on one connection and at one moment as near as separate statements are."""
        began = self._clock()
        with self.database.begin() as connection:
            reader = _Reader(connection, self._clock)
            server = reader.rows(SERVER)[0]
            if not server.ours:
                raise DatabaseUnsuitable(
                    f"the database {self.database.masked_url} has none of our tables: run `shoal db migrate`"
                )
            round_trip = reader.round_trip_seconds()
            states = {row[0]: row[1] for row in reader.rows(STATE_COUNTS)}
            rows = reader.rows(HEADS, under_way=list(UNDER_WAY))
            heads = {row.id: ExperimentHead(**dict(list(row._mapping.items())[:-1])) for row in rows}
            changes = {row.id: row.updated_at for row in rows}
            held = frozenset(row[0] for row in reader.rows(HELD))
            wanted = [head.id for head in heads.values() if not self._stands(head, changes[head.id])]
            fresh = self._numbers(reader, wanted, optuna=server.optuna)
            events = self._events(reader)
            schedules, notices = _schedules(reader) if server.schedules else ((), None)
        self._settled = {
            number: _Settled(changes[number], began, fresh[number])
            if number in fresh
            else self._settled[number]
            for number in heads
        }
        return Snapshot(
            server=ServerNumbers(
                size_bytes=server.size_bytes,
                connections=server.connections,
                connections_limit=server.connections_limit,
                oldest_transaction_seconds=server.oldest_transaction_seconds,
                round_trip_seconds=round_trip,
                statements=reader.statements,
            ),
            experiments=[
                ToldExperiment(
                    head=head,
                    numbers=self._settled[head.id].numbers,
                    controlled=lock_number(control_key(head.id)) in held,
                    events={kind: events[head.id, kind] for kind in TOLD},
                )
                for head in heads.values()
            ],
            states=states,
            schedules=schedules,
            notices=notices,
            seconds=self._clock() - began,
        )

    def _stands(self, head: ExperimentHead, changed: datetime) -> bool:
        """Whether what was read of an experiment before need not be read again."""
        known = self._settled.get(head.id)
        return (
            known is not None
            and head.state not in UNDER_WAY
            and known.changed == changed
            and not any(attempts.running or attempts.overdue for attempts in known.numbers.attempts)
            and self._clock() - known.read_at < SETTLED_SECONDS
        )

    def _numbers(self, reader: _Reader, ids: Sequence[int], *, optuna: bool) -> dict[int, ExperimentNumbers]:
        if not ids:
            return {}
        values = {"ids": list(ids)}
        counted = reader.rows(COUNTED, **values) if optuna else []
        saved = reader.rows(SAVED, **values, **self._defaults) if optuna else []
        trained, attempted = reader.rows(TRAINED_SO_FAR, **values), reader.rows(ATTEMPTED, **values)
        return {
            number: ExperimentNumbers(
                trials=[
                    TrialNumbers(row.method, row.role, _state(row.state), row.trials, row.best)
                    for row in counted
                    if row.experiment_id == number
                ],
                maximize=next((row.sign > 0 for row in counted if row.experiment_id == number), None),
                curves=[CurveNumbers(*row[1:]) for row in trained if row[0] == number],
                attempts=[AttemptNumbers(*row[1:]) for row in attempted if row[0] == number],
                pruning=[PruningNumbers(*row[1:]) for row in saved if row[0] == number],
            )
            for number in ids
        }

    def _events(self, reader: _Reader) -> Counter[tuple[int, str]]:
        """All events that are counted, by experiment and kind; those that stand are read once."""
        limits = reader.rows(LIMITS)[0]
        if limits.standing > self._standing:
            self._counts += self._happened(reader, limits.standing)
            self._standing = limits.standing
        return self._counts + self._happened(reader, limits.newest)

    def _happened(self, reader: _Reader, until: int) -> Counter[tuple[int, str]]:
        rows = reader.rows(HAPPENED, after=self._standing, until=until, told=list(TOLD))
        return Counter({(experiment, kind): count for experiment, kind, count in rows})


@dataclass(frozen=True, slots=True)
class _Settled:
    """What was read of an experiment, and when it had changed last then."""

    changed: datetime
    read_at: float
    numbers: ExperimentNumbers


class _Reader:
    """Counts statements."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self.statements = 0

    def round_trip_seconds(self) -> float:
        """What a statement takes that asks for nothing."""
        began = self._clock()
        self.rows("SELECT 1")
        return self._clock() - began

    def rows(self, statement: str, **values: Any) -> Sequence[Any]:
        self.statements += 1
        return self._connection.execute(text(statement), values).all()


def _schedules(reader: _Reader) -> tuple[Sequence[ScheduleNumbers], NoticeNumbers | None]:
    counts: dict[int, dict[str, int]] = {}
    for schedule, state, count in reader.rows(FIRINGS):
        counts.setdefault(schedule, {})[state] = count
    schedules = [
        ScheduleNumbers(**{key: row._mapping[key] for key in OF_SCHEDULES}, firings=counts.get(row.id, {}))
        for row in reader.rows(SCHEDULES)
    ]
    return schedules, NoticeNumbers(**reader.rows(NOTICES)[0]._mapping)


def _state(word: str) -> ToldState:
    """A trial's state from the word of a row of `COUNTED`."""
    return PAUSED if word == PAUSED else STATES[word]
