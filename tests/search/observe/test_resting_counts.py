"""Trials that rest at a rung are counted and shown as paused, by the exporter and by `shoal status`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from search.observe.exporter import exporter_of
from search.trials.claims import Verdict
from storage import queries
from storage.database import URL_VARIABLE, Database
from tests.contracts.experiments import Running, pausing_spec, prepared, small_spec
from tests.contracts.shoal_command import document, printed
from tests.search.observe.test_exporter import scrape
from tests.search.trials.test_promoting import all_rest, claim_one, report, train


@pytest.fixture
def running(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """An experiment of two methods, one of which has its trials waiting from its beginning."""
    monkeypatch.setenv(URL_VARIABLE, database.url)
    spec = pausing_spec(6, epochs=8, methods={"random": {}, "grid": {}}, pruner=PAUSING)
    with prepared(database, spec) as found:
        yield found


PAUSING = {"name": "asha_promotion", "min_epochs": 1, "eta": 2}


def test_what_rests_is_paused_and_what_nobody_began_waits(
    database: Database, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    with running.broker() as broker:
        claims = broker.claim(4)
        for claim in claims:
            assert train(broker, claim, 0.1 * claim.lease.number) is Verdict.PAUSE
        rows = {row.study.method: row for row in queries.progress(database, running.experiment.id)}
        paused = sum(row.paused for row in rows.values())
        assert paused == 4
        points = rows["grid"].trials
        waiting = {method: row.waiting - row.paused for method, row in rows.items()}
        assert waiting["random"] == 0
        assert 0 < waiting["grid"] <= points
        told = scrape(exporter_of(database))
        for method, row in rows.items():
            assert told["shoal_trials", "small", method, "search", "paused"] == row.paused
            assert told["shoal_trials", "small", method, "search", "waiting"] == waiting[method]
        assert told["shoal_queue_depth", "small"] == sum(waiting.values()), "they wait for no slot"

        status = document(capsys, "status", "small")
        assert {m["method"]: (m["paused"], m["waiting"]) for m in status["methods"]} == {
            method: (row.paused, waiting[method]) for method, row in rows.items()
        }
        assert {s["method"]: (s["paused"], s["waiting"]) for s in status["studies"]} == {
            method: (row.paused, waiting[method]) for method, row in rows.items()
        }
        head, first = _column(printed(capsys, "status", "small")[0], "method", "paused")
        assert first == [str(row.paused) for row in rows.values()], head
        assert sum(row.paused > 0 for row in rows.values()) >= 1


def test_one_that_is_promoted_is_paused_no_more(database: Database) -> None:
    with prepared(database, pausing_spec(4)) as running, running.broker() as broker:
        all_rest(broker, 0.1, 0.2)
        counted = [row.paused for row in queries.progress(database, running.experiment.id)]
        assert counted == [2]
        assert claim_one(broker).lease.last_step == 1
        (row,) = queries.progress(database, running.experiment.id)
        assert (row.paused, row.waiting, row.running, row.trials) == (1, 1, 1, 2)


def test_where_trials_do_not_pause_one_that_was_given_back_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(URL_VARIABLE, database.url)
    with prepared(database, small_spec(methods={"random": {}})) as running, running.broker() as broker:
        claim = claim_one(broker)
        assert report(broker, claim, 1, 0.5) is Verdict.CONTINUE
        broker.release(claim)
        broker.flush()
        (row,) = queries.progress(database, running.experiment.id)
        assert (row.paused, row.waiting) == (0, 1)
        told = scrape(exporter_of(database))
        assert told["shoal_trials", "small", "random", "search", "paused"] == 0
        assert told["shoal_queue_depth", "small"] == 1
        assert "paused" not in printed(capsys, "status", "small")[0]


def _column(text: str, first: str, name: str) -> tuple[str, list[str]]:
    """A column of the table whose first column is called so, as long as the table is."""
    lines = text.splitlines()
    (at,) = [place for place, line in enumerate(lines) if line.startswith(first) and name in line]
    end = lines[at].index(name) + len(name)
    rows = []
    for line in lines[at + 1 :]:
        if not line.strip():
            break
        rows.append(line[:end].split()[-1])
    return lines[at], rows
