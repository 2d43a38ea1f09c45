"""What Optuna Dashboard is given to show: notes, key figures, and nothing twice."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna_dashboard import get_note, save_note

import search.dashboard_notes
from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison
from search.compare.collect import collect
from search.compare.contents import Contents, contents_of
from search.dashboard_notes import (
    BEGIN,
    END,
    MOST_PLOT,
    MOST_TEXT,
    MOST_VERDICT,
    Published,
    drawings,
    framed,
    note,
    publish,
)
from storage.database import Database
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.comparison_values import comparison, lifelike, retraining, study, trial
from tests.contracts.shoal_command import printed
from tests.contracts.simulated_experiment import simulated

ALWAYS = {"shoal-best-so-far-epochs-0", "shoal-scores-0", "shoal-scores-1"}
"""Drawings of every experiment of two methods."""

PAGE = Path("/reports/digits/report.html")
EVIL = "<img src=x onerror=alert(1)> [a](javascript:b) `c` **d** $e$ https://evil.example www.evil\n# f"


def noted(found: Comparison, place: int = 0, drawn_on: str | None = None) -> str:
    analysis = analyse(found, resamples=100)
    result = analysis.studies[place]
    return note(found, analysis, result, PAGE, drawn_on or result.study.name)


def attributes(database: Database, name: str) -> dict[str, object]:
    storage = open_optuna_storage(database.url)
    try:
        return storage.get_study_system_attrs(storage.get_study_id_from_name(name))
    finally:
        close_optuna_storage(storage)


def published(database: Database, report: Path = PAGE) -> Published:
    found = collect(database, "stored")
    analysis = analyse(found, resamples=100)
    return publish(database.url, found, analysis, contents_of(found, analysis), report)


# The text.


def test_a_note_says_how_the_study_stands() -> None:
    trials = [
        trial(0, 0.5, params={"learning_rate": 0.1}),
        trial(1, 0.75, params={"learning_rate": 0.25}),
        trial(2, 0.9, state="pruned", epochs=1),
        trial(3, 0.1, diverged=True),
        trial(4, None, state="failed", epochs=0),
    ]
    one = study("tpe", 3, trials)
    found = comparison(
        [one], readings=retraining(one, 1, [0.625, 0.375]), spec={"comparison": {"retrain": {"seeds": 2}}}
    )
    text = noted(found)
    assert text.startswith("### digits: tpe, replicate 3\n\n")
    assert "**Best validation accuracy: 0.75**, trial 1 (learning\\_rate: 0.25)." in text
    assert "Trained again with 2 fresh seeds: test accuracy 0.5 on average." in text
    assert "5 trials (2 complete, 1 pruned, 1 diverged, 1 failed); 16 epochs in 5.0 s of training." in text
    assert "**Verdict of the experiment**: Only tpe was run" in text
    assert "drawn here; the whole report: /reports/digits/report.html" in text
    assert "As of" not in text


def test_a_note_of_a_running_experiment_says_when_it_was_written() -> None:
    found = replace(lifelike(replicates=2, trials=4), state="running")
    text = noted(found, 1, drawn_on="digits/grid/0")
    assert "As of 2026-01-05 10:00 UTC: the experiment has not ended." in text
    assert "Plots of all methods are drawn on the study digits/grid/0;" in text


def test_a_study_without_a_best_trial_is_said() -> None:
    assert "No trial has been trained to its end" in noted(comparison([study("tpe", 0, [])]))
    assert "0 trials (none yet)" in noted(comparison([study("tpe", 0, [])]))


def test_strings_can_not_write_markdown() -> None:
    found = comparison([study("tpe", 0, [trial(0, 0.5, params={EVIL: EVIL})])], experiment=EVIL)
    text = noted(found)
    assert not re.search(r"<\w", text)
    assert not re.search(r"(?<!\\)[\[\]`]", text)
    assert "$" not in text
    assert "https://" not in text
    assert "www." not in text
    assert not re.search(r"^# ", text, flags=re.MULTILINE)


def test_strings_are_cut() -> None:
    found = comparison([study("tpe", 0, [trial(0, 0.5, params={"p": "x" * 10_000})])], experiment="e" * 500)
    assert len(noted(found)) < 3 * MOST_TEXT + MOST_VERDICT


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "{}"),
        ("  \n", "{}"),
        ("mine", "mine\n\n{}"),
        (f"above\n\n{BEGIN}\n\nold\n\n{END}\n\nbelow", "above\n\n{}\n\nbelow"),
        (f"{BEGIN} cut off", f"{BEGIN} cut off\n\n{{}}"),
    ],
)
def test_what_people_wrote_is_kept(before: str, expected: str) -> None:
    part = f"{BEGIN}\n\nnew \\1\n\n{END}"
    assert framed(before, "new \\1") == expected.format(part)
    assert framed(framed(before, "x"), "new \\1") == expected.format(part)


# The drawings.


def contents(found: Comparison) -> tuple[Analysis, Contents]:
    analysis = analyse(found, resamples=100)
    return analysis, contents_of(found, analysis)


def test_drawings_have_colours_and_one_view() -> None:
    found = drawings(*contents(simulated(replicates=10, trials=30)))
    assert set(found) == {*ALWAYS, "shoal-importances-0"}
    text = json.dumps(found)
    assert "var(--" not in text
    assert "#0b6bcb" in text
    assert {trace.get("meta") for trace in found["shoal-best-so-far-epochs-0"]["data"]} <= {  # type: ignore[attr-defined]
        None, "always", "interval",
    }  # fmt: skip
    assert all(plot["layout"]["title"]["text"] for plot in found.values())  # type: ignore[index]


def test_a_drawing_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = contents(simulated(replicates=10, trials=30))
    sizes = {name: len(json.dumps(plot)) for name, plot in drawings(*made).items()}
    assert max(sizes.values()) < MOST_PLOT
    largest = max(sizes, key=lambda name: sizes[name])
    monkeypatch.setattr(search.dashboard_notes, "MOST_PLOT", sizes[largest] - 1)
    assert set(drawings(*made)) == set(sizes) - {largest}


# The database.


def test_each_study_has_a_note_and_the_first_of_each_method_the_drawings(stored: Database) -> None:
    assert published(stored).notes == 4
    for name in ("stored/random/0", "stored/random/1", "stored/tpe/0", "stored/tpe/1"):
        found = attributes(stored, name)
        assert str(found["dashboard:note_str:0"]).startswith(f"{BEGIN}\n\n### stored: ")
        kept = {key.split(":")[2] for key in found if key.startswith("dashboard:plot_data:")}
        assert kept == (ALWAYS if name.endswith("/0") else set())


def test_the_same_again_changes_nothing(stored: Database) -> None:
    assert published(stored) == Published(4, 2 * len(ALWAYS))
    before = attributes(stored, "stored/tpe/0")
    assert published(stored) == Published(0, 0)
    assert attributes(stored, "stored/tpe/0") == before
    assert published(stored, Path("/elsewhere/report.html")) == Published(4, 0)
    assert attributes(stored, "stored/tpe/0")["dashboard:note_ver"] == 2


def test_a_note_of_a_person_is_kept(stored: Database) -> None:
    storage = open_optuna_storage(stored.url)
    try:
        one = optuna.load_study(
            study_name="stored/tpe/1", storage=storage, sampler=optuna.samplers.RandomSampler()
        )
        save_note(one, "ask Ada about this")
        published(stored)
        assert get_note(one).startswith(f"ask Ada about this\n\n{BEGIN}\n\n### stored: tpe, replicate 1")
    finally:
        close_optuna_storage(storage)


def test_a_deleted_study_is_passed_over(stored: Database) -> None:
    storage = open_optuna_storage(stored.url)
    try:
        storage.delete_study(storage.get_study_id_from_name("stored/tpe/0"))
    finally:
        close_optuna_storage(storage)
    assert published(stored).notes == 3


# The commands.


def test_the_report_writes_notes_unless_told(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "report", "stored", "--no-notes")
    printed(capsys, "report", "stored", "--json")
    assert attributes(stored, "stored/tpe/0") == {}
    printed(capsys, "report", "stored")
    text = str(attributes(stored, "stored/tpe/0")["dashboard:note_str:0"])
    assert str(Path("reports/stored/report.html").resolve()).replace("_", "\\_") in text


def test_notes_that_can_not_be_written_are_a_warning(
    stored: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("read only")

    monkeypatch.setattr(search.dashboard_notes, "publish", fail)
    out, err = printed(capsys, "report", "stored")
    assert "the notes in Optuna Dashboard can't be written: RuntimeError: read only" in err
    assert out.rstrip().endswith("reports/stored/report.html")
