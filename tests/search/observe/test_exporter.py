"""The exporter: readings shared by scrapes, a database that is away, and labels that stay few."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from search.observe.exporter import STANDS_SECONDS, STANDS_TIMES, Exporter, exporter_of, overdue_seconds
from search.observe.metrics import METRICS
from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.metric_values import ScheduleNumbers, ServerNumbers, Snapshot
from tests.contracts.stored_experiment import store_experiment

SERVER = ServerNumbers(
    size_bytes=1,
    connections=2,
    connections_limit=3,
    oldest_transaction_seconds=None,
    round_trip_seconds=0.001,
    statements=4,
)
NOTHING = Snapshot(server=SERVER, experiments=[], states={}, schedules=[], notices=None, seconds=0.5)
DUE = datetime(2026, 3, 1, 2, tzinfo=UTC)


class Reader:
    def __init__(self) -> None:
        self.readings = 0
        self.takes = 0.0
        self.away = False
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def read(self) -> Snapshot:
        self.readings += 1
        self.now += self.takes
        if self.away:
            raise DatabaseUnreachable("away", retryable=True)
        return NOTHING


def scrape(exporter: Exporter) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(exporter)
    return {
        (sample.name, *(sample.labels[label] for label in METRICS[sample.name].labels)): sample.value
        for sample in samples(registry)
    }


def samples(registry: CollectorRegistry) -> list[Sample]:
    text = generate_latest(registry).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def test_scrapes_that_follow_closely_share_a_reading() -> None:
    reader = Reader()
    exporter = Exporter(reader, reader.clock)
    assert scrape(exporter)["shoal_database_reading_age_seconds",] == 0
    reader.now += STANDS_SECONDS - 1
    assert scrape(exporter)["shoal_database_reading_age_seconds",] == STANDS_SECONDS - 1
    assert reader.readings == 1
    reader.now += 1
    scrape(exporter)
    assert reader.readings == 2


def test_a_reading_that_took_long_stands_longer() -> None:
    reader = Reader()
    reader.takes = 3.0
    exporter = Exporter(reader, reader.clock)
    scrape(exporter)
    reader.now += STANDS_TIMES * 3.0 - 1
    scrape(exporter)
    assert reader.readings == 1
    reader.now += 2
    scrape(exporter)
    assert reader.readings == 2


def test_while_the_database_is_away_nothing_old_is_shown() -> None:
    reader = Reader()
    exporter = Exporter(reader, reader.clock)
    assert scrape(exporter)["shoal_database_up",] == 1
    reader.away = True
    reader.now += STANDS_SECONDS
    assert scrape(exporter) == {("shoal_database_up",): 0}
    reader.now += 1
    assert scrape(exporter) == {("shoal_database_up",): 0}
    assert reader.readings == 2, "nor is it asked at each scrape"
    reader.away = False
    reader.now += STANDS_SECONDS
    assert scrape(exporter)["shoal_database_up",] == 1


def test_that_it_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    reader.away = True
    exporter = Exporter(reader, reader.clock)
    for _ in range(3):
        scrape(exporter)
        reader.now += STANDS_SECONDS
    assert [record.getMessage() for record in caplog.records] == ["the database can't be read: away"]


def test_before_the_tables_are_made_it_answers_and_says_what_is_missing(
    empty_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Containers start in any order: no scrape may fail because the migration has not run yet."""
    with Database(empty_database_url) as empty:
        assert scrape(exporter_of(empty)) == {("shoal_database_up",): 0}
    assert "run `shoal db migrate`" in caplog.text


def test_an_experiment_as_prometheus_reads_it(database: Database) -> None:
    store_experiment(database)
    told = scrape(exporter_of(database))
    assert told["shoal_experiment_info", "stored", "finished", "accuracy", "maximize"] == 1
    assert told["shoal_trials", "stored", "tpe", "search", "complete"] == 4
    assert told["shoal_trials", "stored", "tpe", "search", "running"] == 0, "none is 0, not nothing"
    assert told["shoal_best_value", "stored", "random"] == 0.6
    assert told["shoal_attempts_total", "stored", "random", "pruned"] == 2
    assert told["shoal_attempts_total", "stored", "random", "lost"] == 0
    assert told["shoal_device_seconds", "stored", "random", "search"] == 2.5
    assert told["shoal_pruning_saved_epochs", "stored", "random"] == 2
    assert told["shoal_lease_expiries_total", "stored"] == 0
    assert told["shoal_queue_depth", "stored"] == 0
    assert told["shoal_experiment_running", "stored"] == 0
    assert told["shoal_experiments", "finished"] == 1
    assert 0 <= told["shoal_last_progress_seconds", "stored"] < 600


def test_where_nothing_was_pruned_nothing_was_saved(database: Database) -> None:
    store_experiment(database)
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET state = 'COMPLETE' WHERE state = 'PRUNED'")
    assert scrape(exporter_of(database))["shoal_pruning_saved_seconds", "stored", "tpe"] == 0


def test_every_sample_is_one_of_the_list_with_its_labels(database: Database) -> None:
    store_experiment(database)
    registry = CollectorRegistry()
    registry.register(exporter_of(database))
    found = samples(registry)
    for sample in found:
        metric = METRICS[sample.name]
        assert metric.source == "exporter"
        assert sorted(sample.labels) == sorted(metric.labels)
    rest = {name for name, metric in METRICS.items() if metric.source == "exporter"} - {s.name for s in found}
    assert rest <= {
        "shoal_database_oldest_transaction_seconds",
        "shoal_schedule_paused",
        "shoal_schedule_overdue_seconds",
        "shoal_schedule_queued_seconds",
        "shoal_schedule_firings",
    }


def test_series_do_not_grow_with_trials(database: Database) -> None:
    record = store_experiment(database)
    registry = CollectorRegistry()
    registry.register(exporter_of(database))
    before = len(samples(registry))
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO trials (number, study_id, state) "
            "SELECT n, study_id, 'COMPLETE' FROM studies CROSS JOIN generate_series(100, 600) AS n"
        )
        connection.exec_driver_sql("UPDATE shoal.experiments SET updated_at = now()")
    registry = CollectorRegistry()
    registry.register(exporter_of(database))
    assert len(samples(registry)) == before
    assert record.id


def schedule(**changes: object) -> ScheduleNumbers:
    made = ScheduleNumbers(
        name="nightly",
        cron="0 2 * * *",
        timezone="UTC",
        paused=False,
        decided_until=DUE - timedelta(hours=24),
        now=DUE - timedelta(hours=1),
        queued_seconds=0.0,
        firings={},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_schedule_is_overdue_once_a_firing_time_has_passed_that_nobody_decided_about() -> None:
    assert overdue_seconds(schedule()) == 0
    assert overdue_seconds(schedule(now=DUE + timedelta(minutes=5))) == 300
    assert overdue_seconds(schedule(now=DUE + timedelta(minutes=5), decided_until=DUE)) == 0
    assert overdue_seconds(schedule(now=DUE + timedelta(minutes=5), paused=True)) == 0


def test_firing_times_are_in_the_schedules_zone() -> None:
    """Two o'clock in Berlin is one o'clock UTC in winter."""
    late = schedule(timezone="Europe/Berlin", now=DUE - timedelta(minutes=30))
    assert overdue_seconds(late) == 1800


@pytest.mark.parametrize("broken", [{"cron": "no cron"}, {"timezone": "No/Where"}])
def test_a_schedule_that_cant_be_read_stops_no_scrape(broken: dict[str, str]) -> None:
    reader = Reader()
    snapshot = replace(NOTHING, schedules=[schedule(**broken)])
    reader.read = lambda: snapshot  # type: ignore[method-assign]
    told = scrape(Exporter(reader, reader.clock))
    assert told["shoal_schedule_paused", "nightly"] == 0
    assert told["shoal_schedule_firings", "nightly", "stalled"] == 0, "none is 0, or the first is missed"
    assert ("shoal_schedule_overdue_seconds", "nightly") not in told
