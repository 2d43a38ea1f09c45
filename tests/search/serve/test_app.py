"""The pages of the web view, asked without a socket."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from sqlalchemy import event, text

from search.failures import CommandError, ExitCode
from search.serve.app import application, describe_error
from search.serve.guard import admission, guarded
from search.serve.static_files import STATIC, static_address
from storage import queries
from storage.database import Database, open_database
from storage.experiments import Experiments
from storage.pages import Pages, read_only
from storage.records import ExperimentRecord
from tests.contracts.big_experiment import REASON, Size, store_big_experiment
from tests.contracts.evil_experiment import EVIL, store_evil_experiment


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


Ask = Callable[..., Answer]


def asker(served: Any) -> Ask:
    def ask(path: str, method: str = "GET", **headers: str) -> Answer:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        place, _, query = path.partition("?")
        # As a server gives it: unquoted bytes in latin-1.
        environ |= {
            "REQUEST_METHOD": method,
            "PATH_INFO": place,
            "QUERY_STRING": query,
            "HTTP_HOST": "localhost",
        }
        environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        said: list[Any] = []
        body = b"".join(served(environ, lambda *told: said.append(told)))
        status, given = said[0][:2]
        return Answer(int(status[:3]), {name.lower(): value for name, value in given}, body)

    return ask


@pytest.fixture
def reading(database: Database) -> Iterator[Database]:
    with Database(read_only(database.url)) as opened:
        yield opened


@pytest.fixture
def ask(reading: Database) -> Ask:
    return asker(guarded(application(Pages(reading)), admission("localhost", None), describe_error))


@pytest.fixture
def big(database: Database) -> ExperimentRecord:
    return store_big_experiment(database, "big", Size(trials=240, replicates=2, epochs=3))


def shown(page: str) -> str:
    """A page's text, its entities read and runs of blanks made one."""

    class Reader(HTMLParser):
        parts: list[str]

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    reader = Reader()
    reader.parts = []
    reader.feed(page)
    return " ".join(" ".join(reader.parts).split())


def test_all_experiments(ask: Ask, big: ExperimentRecord) -> None:
    answer = ask("/")
    assert (answer.status, answer.headers["content-type"].lower()) == (200, "text/html; charset=utf-8")
    assert f'href="/experiments/{big.id}"' in answer.text
    assert "grid, random, tpe × 2" in shown(answer.text)
    assert "interrupted" in shown(answer.text)


def test_no_experiments_yet(ask: Ask) -> None:
    assert "No experiments yet" in shown(ask("/").text)
    assert "No trial runs at the moment" in shown(ask("/workers").text)


def test_an_experiment_shows_its_methods_with_the_numbers_of_status(
    ask: Ask, database: Database, big: ExperimentRecord
) -> None:
    page = ask(f"/experiments/{big.id}").text
    rows = queries.progress(database, big.id)
    for method in ("grid", "random", "tpe"):
        row = re.search(rf'<tr data-method="{method}">(.*?)</tr>', page, re.DOTALL)
        assert row is not None
        cells = dict(re.findall(r'data-label="([^"]+)">([^<]*)<', row[1]))
        of_method = [one for one in rows if one.study.method == method]
        for state in ("complete", "pruned", "failed", "running", "waiting"):
            assert int(cells[state.capitalize()]) == sum(getattr(one, state) for one in of_method)
        assert cells["Best"] == f"{max(one.best or 0 for one in of_method):.4g}"
    assert page.count('class="chart wide"') == 1
    assert "big/tpe/1" in page


def test_a_controlled_experiment_runs(ask: Ask, database: Database, big: ExperimentRecord) -> None:
    version = ask(f"/api/version?experiment={big.id}").body
    with Experiments(database).control(big):
        assert "No process runs it" not in ask(f"/experiments/{big.id}").text
        assert ask(f"/api/version?experiment={big.id}").body != version
    assert "No process runs it" in ask(f"/experiments/{big.id}").text


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", {}),
        ("?method=tpe&state=pruned", {"method": "tpe", "state": "pruned"}),
        ("?state=failed", {"state": "failed"}),
        ("?method=nobody&state=odd&sort=odd&page=odd", {}),
        ("?method=tpe&method=grid", {"method": "grid"}),
    ],
)
def test_the_table_of_trials(
    ask: Ask, database: Database, big: ExperimentRecord, query: str, wanted: dict[str, Any]
) -> None:
    rows = queries.trials(database, big.id, **wanted)
    page = ask(f"/experiments/{big.id}{query}").text
    table = page[page.index('id="trials"') :]
    assert re.findall(r'href="/trials/(\d+)"', table) == [str(row.trial_id) for row in rows[:50]]
    assert f"1 to {min(50, len(rows))} of {len(rows)} trials" in table


def test_pages_lead_on_with_their_filters(ask: Ask, big: ExperimentRecord) -> None:
    page = ask(f"/experiments/{big.id}?method=tpe&sort=value&page=2").text
    assert "51 to 80 of 80 trials" in page
    (first, previous) = re.findall(r'<a href="(\?[^"]+)"[^>]*>(?:first|previous)<', page)
    assert first == previous == "?method=tpe&amp;sort=value&amp;page=1#trials"
    values = [float(v) for v in re.findall(r'<td class="n">(0\.\d+)</td>', page[page.index('id="trials"') :])]
    assert values == sorted(values, reverse=True)


def test_method_names_beyond_ascii_can_be_filtered_by(
    ask: Ask, database: Database, big: ExperimentRecord
) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE shoal.experiment_studies SET method = 'süß & λ' WHERE method = 'tpe'")
        )
    page = ask(f"/experiments/{big.id}?method=s%C3%BC%C3%9F+%26+%CE%BB").text
    assert "of 80 trials" in page
    assert "method=s%C3%BC%C3%9F+%26+%CE%BB&amp;page=2" in page


def test_a_study_and_a_trial(ask: Ask, database: Database, big: ExperimentRecord) -> None:
    study = Experiments(database).studies(big.id)[2]
    page = ask(f"/studies/{study.id}").text
    assert f"<h1>{study.name}</h1>" in page
    assert "of 40 trials" in page
    row = next(row for row in queries.trials(database, big.id) if row.state == "failed")
    found = shown(ask(f"/trials/{row.trial_id}").text)
    for part in (
        f"Trial {row.number}",
        REASON,
        "Traceback",
        "learning_rate",
        f"{row.params['batch_size']}",
        "big-0",
    ):
        assert part in found
    waiting = next(row for row in queries.trials(database, big.id) if row.state == "waiting")
    assert "No worker has taken it yet" in ask(f"/trials/{waiting.trial_id}").text


def test_workers_and_what_they_run(ask: Ask, database: Database, big: ExperimentRecord) -> None:
    running = [row.trial_id for row in queries.trials(database, big.id, state="running")]
    page = ask("/workers").text
    assert sorted(map(int, re.findall(r'href="/trials/(\d+)"', page))) == running
    assert page.count("ran out") >= len(running)


def test_nothing_is_sent_where_nothing_changed(ask: Ask, database: Database, big: ExperimentRecord) -> None:
    address = f"/api/version?experiment={big.id}"
    first = ask(address)
    version = json.loads(first.body)["version"]
    assert first.headers["etag"] == f'"{version}"'
    assert f'data-version="{version}"' in ask(f"/experiments/{big.id}").text
    again = ask(address, if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    with database.begin() as connection:
        connection.execute(text("UPDATE trials SET state = 'RUNNING' WHERE state = 'WAITING'"))
    assert ask(address, if_none_match=first.headers["etag"]).status == 200


PAGES = {"/": 3, "/experiments/{}": 8, "/studies/{}": 9, "/trials/1": 7, "/workers": 3, "/api/version": 1,
         "/api/version?experiment={}": 2}  # fmt: skip
"""Address → statements that it takes, however large the experiment is."""


@pytest.mark.parametrize("path", PAGES)
def test_statements_of_a_page(ask: Ask, reading: Database, big: ExperimentRecord, path: str) -> None:
    statements: list[str] = []
    event.listen(reading.engine, "before_cursor_execute", lambda *details: statements.append(details[2]))
    assert ask(path.format(1)).status == 200
    assert len(statements) == PAGES[path]


def test_strings_of_users_are_text(ask: Ask, database: Database) -> None:
    record = store_evil_experiment(database)
    study = Experiments(database).studies(record.id)[0]
    failed = next(row for row in queries.trials(database, record.id) if row.state == "failed")
    for path in (
        "/",
        f"/experiments/{record.id}",
        f"/studies/{study.id}",
        f"/trials/{failed.trial_id}",
        "/workers",
    ):
        answer = ask(path)
        assert answer.status == 200
        assert EVIL in shown(answer.text), path
        assert "<script>" not in answer.text, path
        assert "<img src=x" not in answer.text, path


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/experiments/99", "/experiments/9999999999999", "/experiments/x", "/experiments/1/x",
     "/studies/99", "/trials/99", "/trials/-1", "/static/nothing.css", "/static/../app.py",
     "/static/..%2fapp.py", "/static/", "/static/./serve.css", "//etc/passwd", "/static//etc/passwd",
     "/experiments/1%00"],
)  # fmt: skip
def test_what_is_not_there_is_a_404(ask: Ask, path: str) -> None:
    answer = ask(path)
    assert answer.status == 404
    assert "nothing at this address" in answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize("name", STATIC)
def test_static_files_may_be_kept_for_their_address_tells_their_content(ask: Ask, name: str) -> None:
    answer = ask(static_address(name))
    assert answer.status == 200
    assert answer.headers["content-type"] == STATIC[name]
    assert "immutable" in answer.headers["cache-control"]
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_head_says_what_get_would(ask: Ask, big: ExperimentRecord) -> None:
    answer = ask("/", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


def test_pages_are_kept_nowhere(ask: Ask, big: ExperimentRecord) -> None:
    assert ask("/").headers["cache-control"] == "no-store"


def test_links_to_optuna_dashboard(reading: Database, big: ExperimentRecord) -> None:
    ask = asker(application(Pages(reading), "http://127.0.0.1:8080/"))
    page = ask(f"/experiments/{big.id}").text
    with reading.begin() as connection:
        numbers = connection.execute(text("SELECT study_id FROM studies")).scalars().all()
    for number in numbers:
        assert f'href="http://127.0.0.1:8080/dashboard/studies/{number}"' in page
    assert len(numbers) == 6


@pytest.mark.parametrize("url", ["javascript:alert(1)", "127.0.0.1:8080", ""])
def test_a_dashboard_that_is_no_web_address_is_refused(reading: Database, url: str) -> None:
    with pytest.raises(CommandError) as refused:
        application(Pages(reading), url)
    assert refused.value.failure.code is ExitCode.BAD_INPUT


def test_a_database_that_is_gone_is_told_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    url = "postgresql://me:geheimnis@127.0.0.1:1/nothing"
    with Database(url) as gone, caplog.at_level(logging.DEBUG):
        ask = asker(guarded(application(Pages(gone)), admission("localhost", None), describe_error))
        answer = ask("/")
    assert answer.status == 503
    assert "geheimnis" not in answer.text + caplog.text
    assert "127.0.0.1" not in answer.text


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("inner detail")

    monkeypatch.setattr(Pages, "version", broken)
    answer = ask("/")
    assert answer.status == 500
    assert "inner" not in answer.text
    assert "inner detail" in caplog.text


def test_before_optunas_tables_exist(empty_database_url: str) -> None:
    with open_database(empty_database_url) as database:
        ask = asker(application(Pages(database)))
        spec = {"metric": "accuracy", "methods": {"tpe": {}}}
        record = Experiments(database).create("e", spec, "", {}, [("tpe", 0, "e/tpe/0")])
        for path in ("/", f"/experiments/{record.id}", "/workers"):
            assert ask(path).status == 200
        assert "No trials yet" in shown(ask(f"/experiments/{record.id}").text)
