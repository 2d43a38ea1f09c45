"""What the exporter asks the database: right numbers, a bounded number of statements, nothing stale."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from sqlalchemy import event, text

from storage.batched_ledger import BatchedLedger
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Draw, Ending, EpochWrite
from storage.metric_values import ExperimentNumbers, Snapshot, ToldExperiment
from storage.metrics import MOST_EXPERIMENTS, RECENT_DAYS, SETTLED_SECONDS, Numbers
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.pages import read_only
from tests.contracts.stored_experiment import store_experiment


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def numbers(database: Database, clock: Any = None) -> Numbers:
    return Numbers(database, epochs=10, function_epochs=1, **({} if clock is None else {"clock": clock}))


def told(snapshot: Snapshot, name: str = "stored") -> ToldExperiment:
    (found,) = [one for one in snapshot.experiments if one.head.name == name]
    return found


def trials(of: ExperimentNumbers) -> dict[tuple[str, str], int]:
    return {(one.method, one.state): one.trials for one in of.trials}


def set_state(database: Database, state: str, changed: str = "now()") -> None:
    with database.begin() as connection:
        connection.execute(text(f"UPDATE shoal.experiments SET state = '{state}', updated_at = {changed}"))


def test_a_stored_experiment(database: Database) -> None:
    store_experiment(database)
    snapshot = numbers(database).read()
    found = told(snapshot)
    assert (found.head.state, found.head.metric, found.controlled) == ("finished", "accuracy", False)
    assert found.numbers.maximize is True
    ends = {"complete": 4, "pruned": 2, "failed": 2}
    assert trials(found.numbers) == {(m, s): n for m in ("random", "tpe") for s, n in ends.items()}
    # The best of 0.5 and 0.6; a diverged trial is complete and never the best, a pruned one neither.
    assert {one.best for one in found.numbers.trials if one.state == "complete"} == {0.6}
    assert {one.best for one in found.numbers.trials if one.state != "complete"} == {None}
    assert [(c.method, c.role, c.epochs, c.seconds) for c in found.numbers.curves] == [
        ("random", "search", 10, 2.5),
        ("tpe", "search", 10, 2.5),
    ]
    attempts = found.numbers.attempts[0]
    assert (attempts.complete, attempts.pruned, attempts.failed, attempts.lost) == (4, 2, 2, 0)
    assert (attempts.running, attempts.overdue, list(attempts.workers)) == (0, 0, [])
    assert snapshot.states == {"finished": 1}
    assert snapshot.server.connections >= 1
    assert snapshot.server.connections_limit > snapshot.server.connections
    assert snapshot.server.size_bytes > 1_000_000


def test_the_best_of_what_is_to_be_small_is_the_smallest(database: Database) -> None:
    store_experiment(database, direction="minimize")
    found = told(numbers(database).read()).numbers
    assert found.maximize is False
    assert {one.best for one in found.trials if one.state == "complete"} == {0.5}


def test_pruned_trials_saved_what_they_had_left(database: Database) -> None:
    """Two pruned trials per method trained one of two epochs, in a quarter of a second each."""
    store_experiment(database)
    saved = told(numbers(database).read()).numbers.pruning
    assert [tuple(one) for one in saved] == [("random", 2.0, 0.5), ("tpe", 2.0, 0.5)]


@pytest.mark.parametrize(
    ("fixed", "objective", "epochs"), [("{}", "null", 9.0), ('{"epochs": 5}', "null", 4.0), ("{}", "{}", 0.0)]
)
def test_what_a_trial_was_to_train_comes_from_the_file_or_the_default(
    database: Database, fixed: str, objective: str, epochs: float
) -> None:
    store_experiment(database)
    with database.begin() as connection:
        changed = {"spec": f'{{"fixed": {fixed}, "objective": {objective}}}'}
        connection.execute(text("UPDATE shoal.experiments SET spec = CAST(:spec AS json)"), changed)
    saved = told(numbers(database).read()).numbers.pruning
    # Of two trials per method, each of which trained one epoch.
    assert {one.epochs for one in saved} == {2 * epochs}


def test_searched_epochs_are_each_trials_own(database: Database) -> None:
    """Optuna stores a choice as its place in the list: place 1 of (3, 7) is 7 epochs; 2 were trained."""
    record = Experiments(database).create(
        "e", {"fixed": {"epochs": 99}}, "h", {}, [("random", 0, "e/random/0")]
    )
    storage = open_optuna_storage(database.url)
    try:
        optuna.create_study(storage=storage, study_name="e/random/0", direction="maximize")
    finally:
        close_optuna_storage(storage)
    ledger = BatchedLedger(database)
    (lease,) = ledger.claim("e/random/0", ledger.register("w"), waiting=0, new=1)
    draw = Draw(lease=lease, values={"epochs": 7}, distributions={"epochs": CategoricalDistribution((3, 7))})
    reports = [EpochWrite(lease=lease, report=report(epoch), value=0.5) for epoch in (1, 2)]
    ledger.write(draws=[draw], epochs=reports, endings=[Ending(lease=lease, state="pruned")])
    assert record.name == "e"
    (saved,) = told(numbers(database).read(), "e").numbers.pruning
    assert tuple(saved) == ("random", 5.0, pytest.approx(5 * 0.25))


def report(epoch: int) -> Any:
    from objectives.base import EpochReport

    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        validation_loss=1.0,
        metrics={"accuracy": 0.5},
        gradient_norm=None,
        learning_rate=0.1,
        seconds=0.25,
        images_per_second=100.0,
    )


def test_leases_that_live_and_leases_that_ran_out(database: Database) -> None:
    store_experiment(database)
    ledger = BatchedLedger(database)
    first, second = ledger.register("first"), ledger.register("second")
    held = ledger.claim("stored/random/0", first, waiting=0, new=3) + ledger.claim(
        "stored/tpe/0", second, waiting=0, new=1
    )
    with database.begin() as connection:
        late = "UPDATE shoal.attempts SET deadline = now() - interval '1 minute' WHERE token = :token"
        connection.execute(text(late), {"token": held[0].token})
    reader = numbers(database)
    random, tpe = told(reader.read()).numbers.attempts
    assert (random.running, random.overdue, tpe.running, tpe.overdue) == (2, 1, 1, 0)
    assert (list(random.workers), list(tpe.workers)) == ([first], [second])
    ledger.write(endings=[Ending(lease=held[0], state="complete", value=0.5)])
    ledger.expire(told(reader.read()).head.id)
    seen = told(reader.read())
    assert seen.events == {"refused": 1, "expired": 1, "given_up": 0}
    assert (seen.numbers.attempts[0].lost, seen.numbers.attempts[0].overdue) == (1, 0)


def test_events_that_stand_are_counted_once_and_never_twice(database: Database) -> None:
    record = store_experiment(database)
    reader = numbers(database)

    def happen(count: int, age: str) -> None:
        with database.begin() as connection:
            statement = """
            INSERT INTO shoal.events (kind, experiment_id, at)
            SELECT 'expired', :id, clock_timestamp() - CAST(:age AS interval) FROM generate_series(1, :count)
            """
            connection.execute(text(statement), {"id": record.id, "age": age, "count": count})

    seen = []
    for count, age in [(5, "1 hour"), (2, "0"), (0, "0"), (4, "20 minutes"), (1, "0")]:
        happen(count, age)
        seen.append(told(reader.read()).events["expired"])
    assert seen == [5, 7, 7, 11, 12]
    assert told(numbers(database).read()).events["expired"] == 12


def statements_of(database: Database, reader: Numbers) -> int:
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        assert reader.read().server.statements == len(sent)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return len(sent)


def test_statements_do_not_grow_with_experiments(database: Database) -> None:
    reader = numbers(database)
    store_experiment(database)
    reader.read()
    one = statements_of(database, numbers(database))
    for name in ("second", "third", "fourth"):
        store_experiment(database, name=name)
    assert statements_of(database, numbers(database)) == one <= 16


def test_an_experiment_that_has_ended_is_not_read_at_each_scrape(database: Database) -> None:
    store_experiment(database)
    clock = Clock()
    reader = numbers(database, clock)
    fresh = statements_of(database, reader)
    kept = statements_of(database, reader)
    assert kept == fresh - 4  # its aggregates
    clock.now = SETTLED_SECONDS + 1
    assert statements_of(database, reader) == fresh
    set_state(database, "stopped")
    assert statements_of(database, reader) == fresh, "its record has changed"
    set_state(database, "running")
    for _ in range(2):
        assert statements_of(database, reader) == fresh, "it is under way"


def test_what_another_client_did_to_an_ended_experiment_shows_in_time(database: Database) -> None:
    store_experiment(database)
    clock = Clock()
    reader = numbers(database, clock)
    before = trials(told(reader.read()).numbers)["random", "complete"]
    with database.begin() as connection:
        statement = (
            "INSERT INTO trials (number, study_id, state) SELECT 99, study_id, 'COMPLETE' FROM studies"
        )
        connection.execute(text(f"{statement} WHERE study_name = 'stored/random/0'"))
    assert trials(told(reader.read()).numbers)["random", "complete"] == before
    clock.now = SETTLED_SECONDS + 1
    assert trials(told(reader.read()).numbers)["random", "complete"] == before + 1


def test_old_experiments_are_told_of_no_more_unless_they_are_under_way(database: Database) -> None:
    store_experiment(database)
    old = f"now() - interval '{RECENT_DAYS + 1} days'"
    set_state(database, "finished", old)
    snapshot = numbers(database).read()
    assert (list(snapshot.experiments), snapshot.states) == ([], {"finished": 1})
    set_state(database, "running", old)
    assert told(numbers(database).read()).head.state == "running"


def test_a_bounded_number_of_experiments_is_told_of(database: Database) -> None:
    experiments = Experiments(database)
    for place in range(MOST_EXPERIMENTS + 3):
        experiments.create(f"e{place}", {"experiment": "e"}, "h", {}, [("random", 0, f"e{place}/random/0")])
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.experiments SET state = 'finished'"))
        connection.execute(text("UPDATE shoal.experiments SET state = 'running' WHERE name = 'e1'"))
    snapshot = numbers(database).read()
    assert len(snapshot.experiments) == MOST_EXPERIMENTS
    assert snapshot.experiments[0].head.name == "e1", "what is under way comes first"
    assert snapshot.states == {"finished": MOST_EXPERIMENTS + 2, "running": 1}


def test_a_living_controller_is_seen(database: Database) -> None:
    record = store_experiment(database)
    with Experiments(database).control(record):
        assert told(numbers(database).read()).controlled
    assert not told(numbers(database).read()).controlled


def test_before_optunas_tables_are_made(empty_database_url: str) -> None:
    with Database(empty_database_url) as database:
        database.migrate()
        Experiments(database).create("e", {"experiment": "e"}, "h", {}, [("random", 0, "e/random/0")])
        found = told(numbers(database).read(), "e")
    assert (found.numbers.trials, found.numbers.maximize, found.numbers.quiet_seconds) == ([], None, None)
    assert found.head.metric == "value"


def test_it_only_reads(database: Database) -> None:
    store_experiment(database)
    with Database(read_only(database.url)) as reading:
        assert told(numbers(reading).read()).numbers.trials


def test_who_may_not_see_other_transactions_is_told_nothing_of_them(database: Database) -> None:
    """Without the right they all look as if there were none, which would be good news."""
    may = database.scalar("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")
    assert (numbers(database).read().server.oldest_transaction_seconds is not None) == may


def test_schedules_firings_and_notices(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text("""
            INSERT INTO shoal.schedules
                (name, spec, cron, timezone, overlap, each, webhook_format, options, decided_until,
                 removed_at)
            VALUES ('nightly', '{}', '0 2 * * *', 'Europe/Berlin', 'skip', 'new', 'json', '{}',
                    timestamptz '2026-01-01 12:00Z', NULL),
                   ('gone', '{}', '0 2 * * *', 'UTC', 'skip', 'new', 'json', '{}', now(), now())
            """)
        )
        connection.execute(
            text("""
            INSERT INTO shoal.firings
                (schedule_id, generation, scheduled_for, manual, state, reason, missed, created_at, ended_at)
            SELECT id, n, now() + n * interval '1 hour', false,
                   CASE n WHEN 1 THEN 'queued' WHEN 2 THEN 'failed' ELSE 'finished' END, 'why', 0,
                   clock_timestamp() - interval '90 seconds', CASE WHEN n > 1 THEN now() END
            FROM shoal.schedules CROSS JOIN generate_series(1, 4) AS n WHERE name = 'nightly'
            """)
        )
        connection.execute(
            text("""
            INSERT INTO shoal.notices (id, firing_id, body, next_try_at, created_at)
            SELECT 'n', min(id), '{}', now(), clock_timestamp() - interval '1 minute' FROM shoal.firings
            """)
        )
    snapshot = numbers(database).read()
    (schedule,) = snapshot.schedules
    assert (schedule.name, schedule.cron, schedule.timezone, schedule.paused) == (
        "nightly",
        "0 2 * * *",
        "Europe/Berlin",
        False,
    )
    assert schedule.decided_until == datetime.fromisoformat("2026-01-01T12:00:00+00:00")
    assert schedule.firings == {"queued": 1, "failed": 1, "finished": 2}
    assert 90 <= schedule.queued_seconds < 150
    assert snapshot.notices is not None
    assert (snapshot.notices.unsent, snapshot.notices.given_up) == (1, 0)
    assert 60 <= snapshot.notices.oldest_seconds < 120
