"""A look without SQLAlchemy: the same answers as with it, and the same words for what goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import psycopg2

from storage import experiments, launches, queries
from storage.database import Database
from storage.errors import DatabaseUnreachable, ExperimentNotFound
from storage.experiments import Experiments
from storage.launches import Launches
from storage.plain import PLAIN, drivers
from storage.urls import canonical, parse
from tests.contracts.big_experiment import Size, store_big_experiment

SMALL = Size(methods=("grid", "random"), replicates=1, trials=40)

STATEMENTS = {
    f"{module.__name__}.{name}": value
    for module in (experiments, launches, queries)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str) and "SELECT" in value
}


def only_looks(database: Database) -> bool:
    """Whether it has made no engine so far."""
    return database._plain is not None and "engine" not in vars(database)


def test_it_answers_as_with_sqlalchemy(database: Database) -> None:
    made = store_big_experiment(database, "big", SMALL)
    with Database(database.url, looks=True) as looking:
        for ours in (
            queries.progress,
            queries.trials,
            queries.best,
            queries.direction,
            lambda where, _: Experiments(where).get("big"),
            lambda where, _: Experiments(where).list(),
            lambda where, number: Experiments(where).controlled([number]),
            lambda where, number: Experiments(where).changed_within(3600, [number]),
            lambda where, number: Launches(where).newest(number),
            lambda where, _: Launches(where).under_way(),
        ):
            expected = ours(database, made.id)
            found = ours(looking, made.id)
            assert found == expected
            assert type(found) is type(expected)
        page = queries.trials(looking, made.id, method="grid", state="complete", limit=5, offset=3)
        assert page == queries.trials(database, made.id, method="grid", state="complete", limit=5, offset=3)
        assert len(page) == 5
        assert looking.revision() == database.revision()
        assert only_looks(looking)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_put_to_the_driver_as_sqlalchemy_puts_it(name: str) -> None:
    dialect = psycopg2.dialect()
    assert drivers(STATEMENTS[name]) == str(text(STATEMENTS[name]).compile(dialect=dialect))


def test_casts_words_and_percent_signs_are_no_values(database: Database) -> None:
    statement = "SELECT :a AS a, '1'::int AS b, 'shoal:c' AS c, 10 % 4 AS d, 'x' LIKE '%' AS e"
    with Database(database.url, looks=True) as looking:
        for one in (looking, database):
            (row,) = one.rows(statement, {"a": "it's"})
            assert row._asdict() == {"a": "it's", "b": 1, "c": "shoal:c", "d": 2, "e": True}
        assert only_looks(looking)


def test_times_are_utc_whatever_the_client_says(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    with Database(database.url, looks=True) as looking:
        assert looking.scalar("SHOW TimeZone") == "UTC"
        assert looking.scalar("SHOW statement_timeout") == "1min"
        assert only_looks(looking)


def test_a_connection_that_broke_is_no_error(database: Database) -> None:
    with Database(database.url, looks=True) as looking:
        process = looking.scalar("SELECT pg_backend_pid()")
        assert database.scalar(f"SELECT pg_terminate_backend({process})")
        assert looking.scalar("SELECT 7") == 7
        assert not only_looks(looking)


def test_before_optunas_tables_are_made_nothing_has_begun(database: Database) -> None:
    experiment = Experiments(database).create("bare", {}, "hash", {}, [("grid", 0, "bare/grid/0")])
    with database.begin() as connection:
        connection.execute(text("DROP TABLE studies, alembic_version CASCADE"))
    assert database.optuna_revision() is None
    with Database(database.url, looks=True) as looking:
        (row,) = queries.progress(looking, experiment.id)
        assert not row.present
        assert queries.direction(looking, experiment.id) is None


def test_what_is_not_there_is_told_as_ever(database: Database) -> None:
    with Database(database.url, looks=True) as looking, pytest.raises(ExperimentNotFound, match="'nope'"):
        Experiments(looking).get("nope")
    nobody = "postgresql://u:secret@127.0.0.1:1/d"
    with Database(nobody, looks=True) as looking, pytest.raises(DatabaseUnreachable) as error:
        looking.rows("SELECT 1")
    assert "nothing listens" in str(error.value)
    assert "secret" not in str(error.value)


def test_its_connection_is_closed_with_the_database(database: Database) -> None:
    with Database(database.url, looks=True, application_name="a look") as looking:
        looking.rows("SELECT 1")
        (looks,) = database.rows("SELECT pid FROM pg_stat_activity WHERE application_name = 'a look'")
        connection = looking._plain._connection  # type: ignore[union-attr]
    assert connection.closed
    assert looks.pid


@given(st.from_regex(PLAIN, fullmatch=True))
def test_a_plain_url_means_the_same_to_sqlalchemy(url: str) -> None:
    assert canonical(url) == parse(url).render_as_string(hide_password=False)
    assert PLAIN.fullmatch(canonical(url))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss@h/d",
        "postgresql://u:p@ss@h/d",
        "postgresql://h/d?sslmode=require&options=-c%20x",
        "postgresql:///d",
        "postgresql://[::1]/d",
        "postgresql://a,b/d",
        " postgresql://h/d",
        "postgresql://h/d\n",
    ],
)
def test_any_other_url_is_left_to_sqlalchemy(url: str) -> None:
    assert not PLAIN.fullmatch(url)
