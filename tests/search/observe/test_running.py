"""A run watched from outside: its events as metrics and as log lines."""

from __future__ import annotations

import logging

import pytest

from search.control.events import Preparing, Progress, Started, Stopping, Trouble
from search.failures import CommandError
from search.observe.live import PORT_VARIABLE, Instruments
from search.observe.running import LINE_SECONDS, RunLog, RunMetrics, observed_run
from search.observe.sinks import SINKS_VARIABLE
from search.output import LOG_FORMAT_VARIABLE
from storage.records import StudyProgress, StudyRecord

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PORT_VARIABLE, SINKS_VARIABLE, LOG_FORMAT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(complete: int = 3, workers: int = 2) -> Progress:
    study = StudyRecord(id=1, experiment_id=1, method="tpe", replicate=0, name="e/tpe/0")
    row = StudyProgress(
        study=study,
        waiting=1,
        running=2,
        complete=complete,
        pruned=1,
        failed=1,
        epochs=9,
        seconds=1.0,
        best=0.5,
    )
    return Progress([row], 20, 12.5, workers)


def test_a_runs_metrics() -> None:
    clock, metrics = Clock(), Instruments()
    run = RunMetrics("e", metrics, clock)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"experiment": "e"})

    run.on_event(Preparing("preparing"))
    assert value("shoal_controller_last_look_seconds") is None, "it has not looked yet"
    for event in (Started("e", 4, resumed=False), progress(), Trouble("a worker died"), Stopping("SIGTERM")):
        run.on_event(event)
    clock.now = 40.0
    assert value("shoal_controller_workers") == 2
    assert value("shoal_controller_run_seconds") == 12.5
    assert value("shoal_controller_trials_planned") == 20
    assert value("shoal_controller_trials_ended") == 5
    assert value("shoal_controller_troubles_total") == 1
    assert value("shoal_controller_last_look_seconds") == 40.0


def test_a_runs_log_tells_of_progress_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    run = RunLog(clock)
    with caplog.at_level(logging.INFO):
        run.on_event(Preparing("preparing 2 studies"))
        run.on_event(Started("e", 4, resumed=True))
        for second in range(int(LINE_SECONDS) + 1):
            clock.now = float(second)
            run.on_event(progress(complete=second))
        run.on_event(Trouble("worker w died"))
        run.on_event(Stopping("SIGTERM"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "preparing 2 studies"),
        ("INFO", "goes on with 4 workers"),
        ("INFO", "2 of 20 trials have ended"),
        ("INFO", "62 of 20 trials have ended"),
        ("WARNING", "worker w died"),
        ("WARNING", "SIGTERM: the current epochs end, then it stops"),
    ]


def test_whoever_listened_before_hears_everything() -> None:
    heard: list[object] = []
    with observed_run("e", NOWHERE, heard.append) as listener:
        listener(Trouble("one"))
        listener(Stopping("SIGINT"))
    assert heard == [Trouble("one"), Stopping("SIGINT")]


@pytest.mark.parametrize("form", ["text", "json"])
def test_events_are_logged_where_stderr_is_for_programs(
    form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere the display shows them, and a second line would say the same."""
    monkeypatch.setenv(LOG_FORMAT_VARIABLE, form)
    with observed_run("e", NOWHERE, lambda _event: None) as listener:
        listener(Trouble("a worker died"))
    assert ("a worker died" in caplog.text) == (form == "json")


@pytest.mark.parametrize("broken", [{"sinks": ["nothing:x"]}, {"metrics_port": -1}])
def test_what_cant_be_is_refused_before_anything_begins(broken: dict[str, object]) -> None:
    with pytest.raises(CommandError), observed_run("e", NOWHERE, print, **broken):  # type: ignore[arg-type]
        pytest.fail("a run began")
