"""Trials that rest at a rung are shown as paused on every page, and as waiting on none."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from search.trials.claims import Claim, Verdict
from storage import queries
from storage.database import Database
from storage.experiments import Experiments
from storage.metric_values import ToldState
from storage.pages import Pages
from tests.contracts.experiments import Running, pausing_spec, prepared, small_spec
from tests.search.serve.test_app import Ask, ask, reading, shown
from tests.search.trials.test_promoting import claim_one, report, train

__all__ = ["ask", "reading"]

PAUSING = {"name": "asha_promotion", "min_epochs": 1, "eta": 2}


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    """Of two methods, of which one has its trials waiting from its beginning: four trials rest, one runs."""
    spec = pausing_spec(6, epochs=8, methods={"random": {}, "grid": {}}, pruner=PAUSING)
    with prepared(database, spec) as found, found.broker() as broker:
        claims: list[Claim] = broker.claim(5)
        for claim in claims[:4]:
            assert train(broker, claim, 0.1 * claim.lease.number) is Verdict.PAUSE
        yield found


def counts(pages: Pages, running: Running) -> dict[str, dict[str, int]]:
    """Method → state → trials, as `shoal status` counts them."""
    rows = queries.progress(pages.database, running.experiment.id)
    return {
        row.study.method: {
            "running": row.running, "paused": row.paused, "waiting": row.waiting - row.paused
        }
        for row in rows
    }  # fmt: skip


def test_all_experiments(ask: Ask, reading: Database, running: Running) -> None:
    pages = Pages(reading)
    (found,) = pages.experiments(limit=5)
    of_methods = counts(pages, running).values()
    assert (found.running, found.paused) == (1, 4)
    assert found.waiting == sum(one["waiting"] for one in of_methods) > 0
    page = ask("/").text
    assert "0 complete, 0 pruned, 0 failed, 1 running, 4 paused" in page
    for state in ("running", "paused", "waiting"):
        assert f"<title>{state}: {getattr(found, state)}</title>" in page
    assert f"0 of {12}" in shown(page)


def test_the_table_of_methods_and_its_bars(ask: Ask, reading: Database, running: Running) -> None:
    page = ask(f"/experiments/{running.experiment.id}").text
    expected = counts(Pages(reading), running)
    assert sum(one["paused"] for one in expected.values()) == 4
    for method, states in expected.items():
        row = re.search(rf'<tr data-method="{method}">(.*?)</tr>', page, re.DOTALL)
        assert row is not None
        cells = dict(re.findall(r'data-label="([^"]+)">([^<]*)<', row[1]))
        for state, trials in states.items():
            assert int(cells[state.capitalize()]) == trials
            assert (f"<title>{state}: {trials}</title>" in row[1]) == (trials > 0)
    assert '<span class="chip paused" aria-hidden="true"></span>paused' in page
    for name, states in ((f"small/{method}/0", states) for method, states in expected.items()):
        row = re.search(rf">{name}</a></th>(.*?)</tr>", page)
        assert row is not None
        cells = re.findall(r'<td class="n(?: bad)?">([^<]*)</td>', row[1])
        assert cells[4:6] == [str(states["running"] + states["waiting"]), str(states["paused"])]


@pytest.mark.parametrize("state", ["paused", "waiting", "running"])
def test_trials_are_called_and_found_by_it(
    ask: Ask, reading: Database, running: Running, state: ToldState
) -> None:
    pages = Pages(reading)
    total = sum(one[state] for one in counts(pages, running).values())
    address = f"/experiments/{running.experiment.id}?state={state}"
    page = ask(address).text
    table = page[page.index('id="trials"') :]
    assert f"1 to {total} of {total} trials" in table
    assert re.findall(r'<span class="state (\w+)">', table) == [state] * total
    assert f"<option selected>{state}</option>" in table
    for method, states in counts(pages, running).items():
        found = pages.trials(running.experiment.id, method=method, state=state, limit=99)
        assert len(found) == states[state]
        assert all(bool(row.epochs) == (state == "paused") for row in found)


def test_a_trial_that_rests_and_one_that_goes_on(ask: Ask, reading: Database, running: Running) -> None:
    resting = Pages(reading).trials(running.experiment.id, state="paused", sort="number", limit=9)
    page = ask(f"/trials/{resting[0].trial_id}").text
    assert '<span class="state paused">paused</span>' in page
    assert "Its values have not been drawn" not in page
    with running.broker("another") as broker:
        (promoted,) = broker.claim(1)
    assert promoted.trial_id in {row.trial_id for row in resting}
    page = ask(f"/trials/{promoted.trial_id}").text
    assert "<h1>Trial" in page
    assert '<span class="state running">running</span>' in page.split("</h1>")[1]


def test_an_open_page_hears_of_a_promotion(reading: Database, running: Running) -> None:
    pages = Pages(reading)
    before = pages.version(running.experiment.id)
    with running.broker("another") as broker:
        assert claim_one(broker).lease.last_step == 1
    assert pages.version(running.experiment.id) != before


def test_where_trials_do_not_pause_nothing_is_said_of_it(
    ask: Ask, reading: Database, database: Database
) -> None:
    with prepared(database, small_spec(methods={"random": {}})) as running, running.broker() as broker:
        claim = claim_one(broker)
        assert report(broker, claim, 1, 0.5) is Verdict.CONTINUE
        broker.release(claim)
        broker.flush()
        (study,) = Experiments(database).studies(running.experiment.id)
        for path in ("/", "/experiments/1?state=paused", f"/studies/{study.id}", f"/trials/{claim.trial_id}"):
            assert "aused" not in ask(path).text, path
        (found,) = Pages(reading).experiments(limit=5)
        assert (found.waiting, found.paused) == (1, 0)
        assert len(Pages(reading).trials(1, state="waiting", limit=9)) == 1
        assert Pages(reading).trials(1, state="paused", limit=9) == []


def test_a_retraining_that_was_given_back_waits(
    ask: Ask, reading: Database, database: Database, running: Running
) -> None:
    """Nothing rests in the studies that retrain winners, wherever a trial of theirs was interrupted."""
    row = Pages(reading).trials(running.experiment.id, state="paused", limit=1)[0]
    database.script(
        "UPDATE shoal.experiment_studies SET role = 'retraining' WHERE name = %(name)s RETURNING id",
        {"name": row.study_name},
    )
    study = Pages(reading).study_of_trial(row.trial_id)
    assert study is not None
    page = ask(f"/studies/{study.id}").text
    assert "aused" not in page
    assert '<span class="state waiting">waiting</span>' in page
    assert '<span class="state waiting">waiting</span>' in ask(f"/trials/{row.trial_id}").text
