"""What is printed where, how long things take to say, and what a terminal is spared."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from search import output
from search.experiment.problems import Problem, SpecError
from search.failures import CommandError, ExitCode, Failure, failure_of, not_found
from search.formats import (
    format_count,
    format_number,
    format_number_of,
    format_revision,
    format_seconds,
    format_value,
)
from search.progress import (
    MethodProgress,
    Pace,
    ProgressView,
    by_method,
    planned_trials,
    progress_line,
    progress_table,
    remaining_seconds,
    retrained_winners,
)
from storage.errors import DatabaseUnreachable, EmbeddedError, ExperimentBusy, ExperimentNotFound
from storage.records import StudyProgress, StudyRecord


def progress(method: str, replicate: int = 0, **counts: object) -> StudyProgress:
    names = ("waiting", "running", "complete", "pruned", "failed", "epochs")
    values = dict.fromkeys(names, 0) | {"seconds": 0.0, "best": None} | counts
    study = StudyRecord(
        id=1, experiment_id=1, method=method, replicate=replicate, name=f"e/{method}/{replicate}"
    )
    return StudyProgress(study=study, **values)  # type: ignore[arg-type]


def method(
    name: str = "tpe", planned: int = 10, complete: int = 0, best: float | None = None
) -> MethodProgress:
    return MethodProgress(
        method=name, studies=1, planned=planned, complete=complete, pruned=0, failed=0, running=0, waiting=0,
        epochs=0, seconds=0.0, best=best,
    )  # fmt: skip


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    assert not [c for c in output.clean(text) if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160]


def test_escape_sequences_and_bidi_marks_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.show(output.table(("a\x1b[2J",), [("\x1b]0;title\x07x\u202e",)]))
    output.message("\x1b[31mred [bold]not markup[/bold]")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\u202e" not in printed.out
    assert "[bold]not markup[/bold]" in printed.err


def test_data_and_messages_go_their_own_ways(capsys: pytest.CaptureFixture[str]) -> None:
    output.show("data")
    output.message("message")
    output.warn("beware")
    printed = capsys.readouterr()
    assert printed.out == "data\n"
    assert printed.err == "message\nwarning: beware\n"


def test_long_rows_stay_on_one_line_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    output.show(output.table(("config",), [("x" * 500,)]))
    assert "x" * 500 in capsys.readouterr().out


def test_documents_name_their_schema(capsys: pytest.CaptureFixture[str]) -> None:
    output.document("thing/1", {"a": None, "ü": [1]})
    output.line("thing/1", {"b": 2})
    printed = capsys.readouterr().out
    first, _, rest = printed.partition("}\n")
    assert json.loads(first + "}") == {"schema": "shoal.thing/1", "a": None, "ü": [1]}
    assert json.loads(rest) == {"schema": "shoal.thing/1", "b": 2}
    with pytest.raises(ValueError, match="JSON"):
        output.document("thing/1", {"a": float("inf")})


def test_every_problem_is_listed_and_json_holds_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = SpecError(
        [Problem("space.x", "low 2 is above high 1", "swap the two"), Problem("seed", "must be a number", "")]
    )
    failure = failure_of(error)
    assert failure is not None
    assert failure.code == ExitCode.BAD_INPUT
    output.show_failure(failure, as_json=True)
    printed = capsys.readouterr()
    assert "2 problems" in printed.err
    for said in ("space.x: low 2 is above high 1", "→ swap the two", "seed: must be a number"):
        assert said in printed.err
    problems = json.loads(printed.out)["error"]["problems"]
    assert [problem["place"] for problem in problems] == ["space.x", "seed"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ExperimentNotFound("there is no experiment 'x'"), 3),
        (ExperimentBusy("is being run"), 4),
        (DatabaseUnreachable("can't reach"), 5),
        (EmbeddedError("can't start"), 5),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (not_found("nothing there"), 3),
        (CommandError(Failure(ExitCode.CONFLICT, "exists", "it exists")), 4),
    ],
)
def test_errors_have_their_exit_codes(error: Exception, code: int) -> None:
    failure = failure_of(error)
    assert failure is not None
    assert failure.code == code
    assert failure.what


def test_mistakes_of_ours_are_not_explained_away() -> None:
    assert failure_of(KeyError("x")) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


def test_numbers_and_values() -> None:
    assert [format_number(v) for v in (None, 0.97126, 1e-05, 12)] == ["–", "0.9713", "1e-05", "12"]
    assert [format_value(v) for v in (True, None, 64, "full", 0.1)] == ["true", "–", "64", "full", "0.1"]
    assert format_count(1234567) == "1,234,567"
    assert [format_number(v) for v in (9999.4, 9999.9, 14362.7, -14362.7, 9_999_999, 2.5e7)] == [
        "9999", "10,000", "14,360", "-14,360", "1e+07", "2.5e+07",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "thing", "said"),
    [(1, "study", "1 study"), (0, "study", "0 studies"), (1200, "replicate", "1,200 replicates")],
)
def test_one_of_a_thing_is_no_plural(count: int, thing: str, said: str) -> None:
    assert format_number_of(count, thing) == said


def test_revisions_are_short_and_keep_their_mark() -> None:
    assert format_revision("0123456789abcdef0123456789abcdef01234567") == "0123456789ab"
    assert format_revision("0123456789abcdef0123456789abcdef01234567+changes") == "0123456789ab+changes"
    assert format_revision("0123abc") == "0123abc"


def test_paths_are_not_folded_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output.show(f"report: /{'x' * 60}")
    assert f"report: /{'x' * 60}\n" in capsys.readouterr().out


def test_numbers_are_whole_on_the_narrowest_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    output.show(output.table(("a", "b"), [("0.12345", "0.67890")], numbers=("a", "b")))
    assert capsys.readouterr().out.split() == ["a", "0.12345", "b", "0.67890"]


def test_progress_adds_up_per_method() -> None:
    rows = [
        progress("grid", 0, complete=3, waiting=5, best=0.5, epochs=6, seconds=1.0),
        progress("grid", 1, complete=1, pruned=2, failed=1, waiting=4, best=0.7, epochs=4, seconds=1.0),
        progress("tpe", 0, running=1),
    ]
    grid, tpe = by_method(rows, {"budget": {"trials": 20}}, maximize=True)
    assert (grid.method, grid.studies, grid.planned, grid.finished, grid.best) == ("grid", 2, 16, 7, 0.7)
    assert (grid.epochs, grid.seconds) == (10, 2.0)
    assert (tpe.planned, tpe.finished, tpe.best) == (20, 0, None)
    assert by_method(rows, {}, maximize=False)[0].best == 0.5


def test_planned_trials_of_a_grid_are_its_points() -> None:
    spec = {"budget": {"trials": 20}}
    assert planned_trials(progress("grid", waiting=8), spec) == 8
    assert planned_trials(progress("grid"), spec) == 20
    assert planned_trials(progress("tpe", complete=8), spec) == 20
    assert planned_trials(progress("tpe", complete=30), spec) == 30


RETRAIN = {"comparison": {"retrain": {"seeds": 5}}}


def test_retraining_is_counted_from_what_the_file_asks_for() -> None:
    rows = [progress("grid", complete=3, running=1, waiting=1, epochs=9, seconds=1.5)]
    found = retrained_winners(rows, 4, RETRAIN)
    assert found is not None
    assert (found.planned, found.finished, found.running, found.epochs) == (20, 3, 1, 9)
    former = retrained_winners([progress("grid", complete=25)], 4, RETRAIN)
    assert former is not None
    assert former.planned == 25, "those of former winners are there as well"
    for none in ({}, {"comparison": {}}, {"comparison": {"retrain": {"seeds": 0}}}):
        assert retrained_winners(rows, 4, none) is None


def test_retraining_stands_beside_the_trials_of_the_search() -> None:
    again = retrained_winners([progress("tpe", complete=2)], 2, RETRAIN)
    assert again is not None
    rows = [method(planned=10, complete=10, best=0.5), again]
    said = progress_line("demo", rows, remaining=60.0)
    assert said == "demo: 10/10 trials, about 1 min 0 s left | tpe 10/10 best 0.5 | winners retrained 2/10"
    target = io.StringIO()
    Console(file=target, width=100).print(progress_table(rows, "accuracy"))
    assert target.getvalue().splitlines()[-1].split()[:2] == ["winners", "retrained"]
    assert "2/10" in target.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("ended", "finished", "planned", "elapsed", "left"),
    [
        (10, 20, 50, 5.0, 15.0),
        (5, 5, 300, 2.0, 118.0),
        (4, 4, 300, 2.0, None),  # neither five nor 3 %
        (3, 3, 100, 6.0, 194.0),  # 3 % of few and long trials
        (2, 2, 100, 6.0, None),
        (2, 2, 10, 6.0, 24.0),
        (1, 1, 10, 6.0, None),  # one trial tells nothing, whatever its share
        (0, 10, 50, 5.0, None),
        (5, 50, 50, 5.0, 0.0),
    ],
)
def test_time_left_by_what_has_ended(
    ended: int, finished: int, planned: int, elapsed: float, left: float | None
) -> None:
    found = remaining_seconds(ended=ended, finished=finished, planned=planned, elapsed=elapsed)
    assert found == (None if left is None else pytest.approx(left))


def test_time_left_follows_the_pace_since_the_first_end() -> None:
    """300 trials of which two end per second, after workers took a minute to start."""
    clock = Clock()
    pace = Pace(clock)
    assert pace.remaining([method(planned=300, complete=4)]) is None  # of an earlier run
    clock.now += 60
    assert pace.remaining([method(planned=300, complete=5)]) is None
    told = []
    for second in range(1, 11):
        clock.now += 1
        told.append(pace.remaining([method(planned=300, complete=5 + 2 * second)]))
    assert told[:2] == [None, None]
    assert told[2:] == pytest.approx([(300 - 5 - 2 * second) / 2 for second in range(3, 11)])


def test_no_time_left_is_printed_after_a_first_trial_of_many() -> None:
    clock, target = Clock(), io.StringIO()
    with ProgressView("demo", "accuracy", Console(file=target), clock) as view:
        for complete in (0, 1, 2, 3, 21):
            clock.now += 10
            view.update([method(planned=300, complete=complete)])
    lines = target.getvalue().splitlines()
    assert [line.partition(" | ")[0] for line in lines] == [
        "demo: 0/300 trials",
        "demo: 1/300 trials",
        "demo: 2/300 trials",
        "demo: 3/300 trials",
        "demo: 21/300 trials, about 6 min 58 s left",
    ]


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    clock, target = Clock(), io.StringIO()
    with ProgressView("demo", "accuracy", Console(file=target), clock) as view:
        view.update([method(complete=1)])
        clock.now += 1
        view.update([method(complete=2)])
        clock.now += 10
        view.update([method(complete=4, best=0.91234)])
        clock.now += 1
        view.update([method(complete=10, best=0.91234)])
        view.update([method(complete=10, best=0.91234)])
    lines = target.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[2] == "demo: 10/10 trials | tpe 10/10 best 0.9123"
    assert lines[0] == "demo: 1/10 trials | tpe 1/10 best –"
    assert "4/10" in lines[1]
    assert "best 0.9123" in lines[1]
    assert "left" in lines[1]
    assert "\x1b" not in target.getvalue()


def test_in_a_terminal_progress_is_redrawn() -> None:
    target = io.StringIO()
    with ProgressView("demo", "accuracy", Console(file=target, force_terminal=True, width=100)) as view:
        assert view.live
        view.update([method(complete=1, best=0.5)])
    assert "\x1b[" in target.getvalue()
    assert "1/10" in target.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not ProgressView("demo", "accuracy", Console(file=io.StringIO(), force_terminal=True)).live


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    target = io.StringIO()
    Console(file=target, force_terminal=True).print(output.table(("a",), [("b",)]), style="red")
    assert "\x1b[31m" not in target.getvalue()


def test_a_line_counts_what_went_wrong() -> None:
    row = MethodProgress(
        method="grid", studies=1, planned=9, complete=2, pruned=3, failed=1, running=1, waiting=2, epochs=9,
        seconds=1.0, best=0.5,
    )  # fmt: skip
    assert (
        progress_line("e", [row], 12.0)
        == "e: 6/9 trials, about 12 s left | grid 6/9 best 0.5 pruned 3 failed 1"
    )


@pytest.mark.parametrize(
    ("shown", "encoding", "written"),
    [(False, "ascii", "grid × 3".encode()), (True, "latin-1", b"grid \xd7 3"), (True, "ascii", b"grid ? 3")],
)
def test_a_terminal_keeps_its_encoding_and_files_are_utf8(
    shown: bool, encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(kept, encoding=encoding))
    monkeypatch.setattr(output, "is_terminal", lambda: shown)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    output.spell()
    print("grid × 3", end="", flush=True)
    assert kept.getvalue() == written
