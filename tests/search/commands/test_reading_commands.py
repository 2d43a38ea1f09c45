"""Commands that look at experiments, where there is much to look at."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import event, text

from search.commands.reading import PAGE
from search.compare.collect import collect
from search.trials.claims import Reported
from storage import queries
from storage.database import URL_VARIABLE, Database
from storage.records import ExperimentRecord
from tests.contracts.big_experiment import Size, store_big_experiment
from tests.contracts.claims import report_of
from tests.contracts.experiments import pausing_spec, prepared
from tests.contracts.shoal_command import document, printed


@pytest.fixture
def big(database: Database, monkeypatch: pytest.MonkeyPatch) -> ExperimentRecord:
    monkeypatch.setenv(URL_VARIABLE, database.url)
    return store_big_experiment(database, "big", Size(trials=240, replicates=2, epochs=3))


def test_a_table_of_trials_is_a_page_and_says_so(
    capsys: pytest.CaptureFixture[str], big: ExperimentRecord
) -> None:
    out, said = printed(capsys, "trials", "big")
    assert len(out.splitlines()) == 1 + PAGE
    assert f"--offset {PAGE} shows the next" in said
    _, said = printed(capsys, "trials", "big", "--offset", str(PAGE))
    assert f"--offset {2 * PAGE} shows the next" in said
    out, said = printed(capsys, "trials", "big", "--offset", str(2 * PAGE))
    assert (len(out.splitlines()), said) == (1 + 240 - 2 * PAGE, "")
    out, said = printed(capsys, "trials", "big", "--limit", "240")
    assert (len(out.splitlines()), said) == (1 + 240, "")


def test_json_has_all_trials_unless_told(
    capsys: pytest.CaptureFixture[str], database: Database, big: ExperimentRecord
) -> None:
    rows = queries.trials(database, big.id)
    everything = document(capsys, "trials", "big")
    assert (everything["experiment"], everything["more"]) == ("big", False)
    assert [trial["trial"] for trial in everything["trials"]] == [row.number for row in rows]
    assert [trial["params"] for trial in everything["trials"]] == [dict(row.params) for row in rows]
    some = document(capsys, "trials", "big", "--limit", "7", "--offset", "3")
    assert (some["trials"], some["more"]) == (everything["trials"][3:10], True)
    none = document(capsys, "trials", "big", "--offset", "1000")
    assert (none["trials"], none["more"]) == ([], False)
    last = document(capsys, "trials", "big", "--limit", "40", "--offset", "200")
    assert (len(last["trials"]), last["more"]) == (40, False)


def test_one_trial_is_one_line(capsys: pytest.CaptureFixture[str], big: ExperimentRecord) -> None:
    out, _ = printed(capsys, "trials", "big", "--json", "--limit", "5")
    lines = [line.rstrip(",") for line in out.splitlines() if line.startswith("    {")]
    assert [json.loads(line) for line in lines] == json.loads(out)["trials"]


def test_what_drawing_took_is_summed_over_attempts(database: Database, big: ExperimentRecord) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.attempts SET sampler_seconds = 0.25 * number"))
    rows = queries.trials(database, big.id)
    expected = {0: 0.0, 1: 0.25, 2: 0.75}
    assert {row.attempts for row in rows} == set(expected)
    assert all(row.sampler_seconds == expected[row.attempts] for row in rows)


def test_a_report_reads_a_row_per_trial_not_per_epoch(database: Database, big: ExperimentRecord) -> None:
    fetched: list[int] = []
    statements: list[str] = []

    def count(_connection: object, cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)
        fetched.append(max(0, cursor.rowcount))  # type: ignore[attr-defined]

    event.listen(database.engine, "after_cursor_execute", count)
    found = collect(database, "big")
    assert len(statements) == 11
    assert max(fetched) == 240
    assert sum(len(trial.curve) for study in found.studies for trial in study.trials) > 2 * 240


def test_a_report_has_the_times_of_its_trials(database: Database, big: ExperimentRecord) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.attempts SET sampler_seconds = 0.5"))
    rows = {(row.study_name, row.number): row for row in queries.trials(database, big.id)}
    for study in collect(database, "big").studies:
        for trial in study.trials:
            row = rows[study.name, trial.number]
            assert (trial.started_at, trial.ended_at) == (row.started_at, row.ended_at)
            assert trial.sampler_seconds == 0.5 * row.attempts
            assert [point.epoch for point in trial.curve] == list(range(1, row.epochs + 1))


def test_a_trial_that_rests_is_shown_as_paused(
    capsys: pytest.CaptureFixture[str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, database.url)
    with prepared(database, pausing_spec()) as running, running.broker() as broker:
        (resting,) = broker.claim(1)
        broker.store([Reported(resting, report_of(1), last=False, leaving=True)])
        broker.claim(1)
        out, _ = printed(capsys, "trials", "small")
        assert [line.split()[3] for line in out.splitlines()[1:]] == ["paused", "running"]
        told = document(capsys, "trials", "small")["trials"]
        assert [trial["state"] for trial in told] == ["waiting", "running"], "as the database has it"
