"""What the web view reads: aggregates equal to counting by hand, one statement each, none that scans all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from sqlalchemy import event, text

from storage import queries
from storage.curves import Curves
from storage.database import Database, open_database
from storage.errors import DatabaseUnsuitable
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.pages import SORTS, Pages, read_only
from storage.records import ExperimentRecord, TrialRow
from tests.contracts.big_experiment import DISTRIBUTIONS, REASON, Size, store_big_experiment
from tests.contracts.stored_experiment import store_experiment

SIZE = Size(trials=300, replicates=2, epochs=4)


@pytest.fixture
def big(database: Database) -> ExperimentRecord:
    return store_big_experiment(database, "big", SIZE)


@pytest.fixture
def pages(database: Database) -> Iterator[Pages]:
    with Database(read_only(database.url)) as reading:
        yield Pages(reading)


@pytest.fixture
def rows(database: Database, big: ExperimentRecord) -> list[TrialRow]:
    return queries.trials(database, big.id)


def test_optuna_and_our_queries_read_the_big_experiment_alike(
    database: Database, big: ExperimentRecord, rows: list[TrialRow]
) -> None:
    assert len(rows) == SIZE.trials
    assert {row.state for row in rows} == {"complete", "pruned", "failed", "running", "waiting"}
    storage = open_optuna_storage(database.url)
    try:
        for study in Experiments(database).studies(big.id):
            found = optuna.load_study(study_name=study.name, storage=storage)
            of_study = [row for row in rows if row.study_name == study.name]
            for trial, row in zip(found.get_trials(), of_study, strict=True):
                assert (trial.number, trial.state.name[:4].lower()) == (row.number, row.state[:4])
                assert trial.params == row.params
                assert trial.value == row.value
                assert len(trial.intermediate_values) == row.epochs
                assert list(trial.params) in ([], list(DISTRIBUTIONS))
    finally:
        close_optuna_storage(storage)
    assert sum(row.epochs for row in rows) == len(Curves(database).of_experiment(big.id))


def test_curves_as_arrays_are_the_curves(database: Database, big: ExperimentRecord) -> None:
    curves = Curves(database)
    by_trial: dict[int, list[Any]] = {}
    for epoch in curves.of_experiment(big.id):
        by_trial.setdefault(epoch.trial_id, []).append(epoch)
    arrays = curves.points(big.id, "accuracy")
    assert arrays.keys() == by_trial.keys()
    for trial_id, epochs in by_trial.items():
        found = arrays[trial_id]
        assert list(found.epochs) == [epoch.epoch for epoch in epochs]
        assert list(found.values) == [epoch.metrics["accuracy"] for epoch in epochs]
        assert list(found.train_losses) == [epoch.train_loss for epoch in epochs]
        assert list(found.validation_losses) == [epoch.validation_loss for epoch in epochs]
        assert list(found.seconds) == [epoch.seconds for epoch in epochs]
    assert all(set(found.values) == {None} for found in curves.points(big.id, "unknown").values())


def test_improvements_are_the_running_best(pages: Pages, big: ExperimentRecord, rows: list[TrialRow]) -> None:
    found = pages.improvements(big.id)
    for study in Experiments(pages.database).studies(big.id):
        ended = [r for r in rows if r.study_name == study.name and r.ended_at is not None]
        ended.sort(key=lambda row: (row.ended_at, row.number))
        best, epochs, expected = None, 0, []
        for place, row in enumerate(ended, 1):
            epochs += row.epochs
            before = best
            if row.state == "complete" and not row.diverged:
                best = row.value if best is None else max(best, row.value or 0.0)
            if best != before or place == len(ended):
                expected.append((epochs, place, best))
        of_study = [one for one in found if one.study_id == study.id]
        assert [(one.epochs, one.trials, one.best) for one in of_study] == expected
        assert pages.improvements(big.id, study.id) == of_study


def test_the_best_of_a_minimised_experiment_is_its_smallest(database: Database, pages: Pages) -> None:
    record = store_experiment(database, direction="minimize")
    assert {one.best for one in pages.improvements(record.id)} == {0.5, 0.6}
    values = [row.value for row in pages.trials(record.id, sort="value", limit=3)]
    assert values == sorted(value for value in values if value is not None)
    (overview,) = pages.experiments(limit=5)
    assert (overview.best, overview.complete, overview.pruned, overview.failed) == (0.5, 8, 4, 4)
    assert overview.studies == 4


@pytest.mark.parametrize("sort", SORTS)
def test_pages_together_are_all_trials(
    pages: Pages, big: ExperimentRecord, rows: list[TrialRow], sort: Any
) -> None:
    found = [row for at in range(0, 300, 70) for row in pages.trials(big.id, sort=sort, limit=70, offset=at)]
    assert sorted(found, key=lambda row: row.trial_id) == sorted(rows, key=lambda row: row.trial_id)
    keys: dict[str, Callable[[TrialRow], Any]] = {
        "number": lambda row: (row.replicate, row.method, row.number),
        "value": lambda row: (row.value is None, -(row.value or 0)),
        "worst": lambda row: (row.value is None, row.value or 0),
        "started": lambda row: (
            (row.started_at is None, -(row.started_at or row.ended_at or 0).timestamp())
            if row.started_at
            else (True, 0)
        ),
        "ended": lambda row: (False, -row.ended_at.timestamp()) if row.ended_at else (True, 0),
    }
    assert found == sorted(found, key=keys[sort])


def test_filters_of_a_page(pages: Pages, big: ExperimentRecord, rows: list[TrialRow]) -> None:
    study = Experiments(pages.database).studies(big.id)[1]
    expected = [row for row in rows if row.study_name == study.name]
    assert pages.trials(big.id, study_id=study.id, limit=1000) == expected
    assert pages.trials(big.id, method="tpe", state="pruned", limit=1000) == [
        row for row in rows if (row.method, row.state) == ("tpe", "pruned")
    ]
    assert pages.trials(big.id, method="nobody's", limit=10) == []
    assert pages.trials(big.id + 1, limit=10) == []


def test_a_sample_has_the_best_and_an_even_choice_of_others(
    pages: Pages, big: ExperimentRecord, rows: list[TrialRow]
) -> None:
    usable = [r for r in rows if r.state in ("complete", "pruned") and not r.diverged and r.value is not None]
    found = pages.sample(big.id, best=10, others=50)
    best = sorted(usable, key=lambda row: (-(row.value or 0), row.trial_id))
    assert [one.trial_id for one in found[-10:]] == [row.trial_id for row in reversed(best[:10])]
    assert 50 <= len(found) <= 10 + len(usable) // (len(usable) // 50) + 1
    assert [one.value for one in found] == sorted(one.value for one in found)
    drawn = {row.trial_id: row.params for row in rows}
    for one in found:
        zipped = zip(one.names, one.numbers, one.distributions, strict=True)
        decoded = {name: queries.decode_parameter(number, kind) for name, number, kind in zipped}
        assert decoded == drawn[one.trial_id]
    assert len(pages.sample(big.id, best=1000, others=1)) == len(usable)


def test_a_trial_and_what_belongs_to_it(pages: Pages, big: ExperimentRecord, rows: list[TrialRow]) -> None:
    failed = next(row for row in rows if row.state == "failed")
    assert pages.trial(failed.trial_id) == failed
    study = pages.study_of_trial(failed.trial_id)
    assert study is not None
    assert (study.name, study.experiment_id) == (failed.study_name, big.id)
    assert pages.study(study.id) == study
    (attempt,) = pages.attempts(failed.trial_id)
    assert (attempt.state, attempt.reason, attempt.worker) == ("failed", REASON, "big-0")
    assert attempt.traceback is not None
    retried = next(row for row in rows if row.attempts == 2)
    assert [one.state for one in pages.attempts(retried.trial_id)] == ["lost", "complete"]
    for absent in (
        pages.trial(10**6),
        pages.study_of_trial(10**6),
        pages.study(10**6),
        pages.experiment(10**6),
    ):
        assert absent is None


def test_slots_are_the_running_attempts_with_what_they_have_reached(
    database: Database, pages: Pages, big: ExperimentRecord, rows: list[TrialRow]
) -> None:
    running = {row.trial_id: row for row in rows if row.state == "running"}
    with database.begin() as connection:
        kept = min(running)
        connection.execute(
            text("UPDATE shoal.attempts SET deadline = now() + interval '1 h' WHERE trial_id = :id"),
            {"id": kept},
        )
    slots = pages.slots(limit=100)
    assert {slot.trial_id for slot in slots} == running.keys()
    assert [slot.alive for slot in slots] == [True] + [False] * (len(running) - 1)
    for slot in slots:
        assert (slot.experiment, slot.trial_number) == ("big", running[slot.trial_id].number)
        assert slot.epochs == running[slot.trial_id].epochs == 2
        assert slot.metric == Curves(database).of_trial(slot.trial_id)[-1].metrics["accuracy"]
    (worker,) = pages.workers(limit=10)
    assert (worker.name, worker.running, worker.alive) == ("big-0", len(running), 1)


def change(statement: str) -> Callable[[Database], None]:
    def run(database: Database) -> None:
        with database.begin() as connection:
            assert connection.execute(text(statement)).rowcount

    return run


@pytest.mark.parametrize(
    "happening",
    [
        change("UPDATE trials SET state = 'PRUNED', datetime_complete = now() WHERE state = 'RUNNING'"),
        change("UPDATE trials SET state = 'RUNNING' WHERE state = 'WAITING'"),
        change("INSERT INTO trials (study_id, number, state) SELECT max(study_id), 9, 'WAITING' FROM trials"),
        change("INSERT INTO shoal.epochs (trial_id, epoch, attempt, study_id, trial_number, metrics, "
               "learning_rate, seconds, images_per_second, diverged) "
               "SELECT trial_id, 50, number, study_id, trial_number, '{}', 0.1, 1, 1, false "
               "FROM shoal.attempts WHERE state = 'running' LIMIT 1"),
        change("UPDATE shoal.attempts SET state = 'lost', ended_at = now() WHERE state = 'running'"),
        change("UPDATE shoal.attempts SET deadline = now() + interval '1 h' WHERE state = 'running'"),
        change("UPDATE shoal.experiments SET state = 'stopped', updated_at = now()"),
        change("UPDATE studies SET study_name = study_name || '?'"),
    ],
    ids=["ended", "began", "enqueued", "epoch", "lost", "lease", "state", "gone"],
)  # fmt: skip
def test_whatever_a_page_shows_changes_the_version(
    database: Database, pages: Pages, big: ExperimentRecord, happening: Callable[[Database], None]
) -> None:
    before = (pages.version(big.id), pages.version())
    assert (pages.version(big.id), pages.version()) == before
    happening(database)
    after = (pages.version(big.id), pages.version())
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_the_version_of_one_experiment_minds_no_other(
    database: Database, pages: Pages, big: ExperimentRecord
) -> None:
    before = (pages.version(big.id), pages.version())
    store_experiment(database)
    assert pages.version(big.id) == before[0]
    assert pages.version() != before[1]


QUESTIONS: dict[str, Callable[[Pages, int], object]] = {
    "version": lambda pages, number: pages.version(number),
    "experiments": lambda pages, _: pages.experiments(limit=10),
    "experiment": lambda pages, number: pages.experiment(number),
    "optuna_studies": lambda pages, number: pages.optuna_studies(number),
    "improvements": lambda pages, number: pages.improvements(number),
    "sample": lambda pages, number: pages.sample(number, best=5, others=5),
    "trials": lambda pages, number: pages.trials(number, limit=10),
    "trial": lambda pages, _: pages.trial(1),
    "slots": lambda pages, _: pages.slots(limit=10),
    "workers": lambda pages, _: pages.workers(limit=10),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_one_statement(pages: Pages, big: ExperimentRecord, question: str) -> None:
    statements: list[str] = []
    event.listen(
        pages.database.engine, "before_cursor_execute", lambda *details: statements.append(details[2])
    )
    QUESTIONS[question](pages, big.id)
    assert len(statements) == 1


def test_a_page_of_trials_reads_only_what_it_shows(database: Database, pages: Pages) -> None:
    """Of the large tables it touches the rows of its own ten trials, however many others there are."""
    record = store_big_experiment(database, "many", Size(trials=2000, replicates=1, epochs=4))
    explained: list[str] = []

    def explain(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        with database.begin() as connection:
            asked = f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) {statement}"
            explained.extend(row[0] for row in connection.exec_driver_sql(asked, values))

    event.listen(pages.database.engine, "before_cursor_execute", explain)
    pages.trials(record.id, sort="value", limit=10)
    plan = "\n".join(explained)
    for table, most in (("epochs", 4), ("trial_params", 5), ("attempts", 2)):
        scans = re.findall(rf"(.*) on {table}\b.*rows=([\d.]+) loops=(\d+)", plan)
        assert scans, plan
        for scan, rows, loops in scans:
            assert "Seq Scan" not in scan, plan
            assert float(rows) * int(loops) <= 10 * most, plan


def test_its_connections_cannot_write(pages: Pages) -> None:
    with (
        pytest.raises(DatabaseUnsuitable, match="read-only transaction"),
        pages.database.begin() as connection,
    ):
        connection.execute(text("INSERT INTO shoal.workers (name, host, process) VALUES ('w', 'h', 1)"))
    assert pages.workers(limit=5) == []


def test_options_of_a_url_are_kept() -> None:
    url = "postgresql://u:p%40ss@h/d?options=-c%20work_mem%3D1MB&sslmode=disable"
    found = read_only(url)
    assert "work_mem%3D1MB" in found
    assert "default_transaction_read_only%3Don" in found
    assert "p%40ss" in found
    assert "sslmode=disable" in found


def test_before_optunas_tables_exist(empty_database_url: str) -> None:
    with open_database(empty_database_url) as database:
        pages = Pages(database)
        before = pages.version()
        record = Experiments(database).create("e", {"metric": "accuracy"}, "", {}, [("tpe", 0, "e/tpe/0")])
        assert pages.version() != before
        assert pages.version(record.id) == pages.version(record.id)
        (overview,) = pages.experiments(limit=5)
        assert (overview.name, overview.studies, overview.complete, overview.best) == ("e", 1, 0, None)
        assert pages.improvements(record.id) == []
        assert pages.sample(record.id, best=1, others=1) == []
        assert pages.trials(record.id, limit=1) == []
        assert pages.trial(1) is None
        assert pages.study_of_trial(1) is None
