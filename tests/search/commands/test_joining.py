"""What a worker's process does when it is told to go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from search.commands import joining
from search.commands.joining import Notice, drain
from search.control import crew
from search.control.crew import EXIT_ABANDONED, EXIT_TERMINATED
from search.failures import ExitCode
from storage import processes, workers


@pytest.fixture
def notice() -> Iterator[Notice]:
    """One that listens. What guards the grace time is called off before it ends this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    running = threading.enumerate()
    found = Notice()
    found.listen(grace_seconds=3600.0)
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer) and thread not in running:
            thread.cancel()
            thread.join()


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, EXIT_TERMINATED)]
)
def test_the_first_signal_lets_the_epoch_end_and_says_the_exit_code(
    notice: Notice, sent: signal.Signals, code: int
) -> None:
    assert not notice.given.is_set()
    signal.raise_signal(sent)
    assert notice.given.is_set()
    assert notice.exit_code == code


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_it_waits_for_nothing(notice: Notice, first: signal.Signals) -> None:
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_engine_that_does_not_come_back_has_an_exit_code_of_its_own_unless_it_was_told_to(
    notice: Notice, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[str, int]] = []
    monkeypatch.setattr(crew, "leave_at_once", lambda reason, code: left.append((reason, code)))
    notice.abandon("it hangs")
    signal.raise_signal(signal.SIGTERM)
    notice.abandon("its epoch did not end")
    assert left == [("it hangs", EXIT_ABANDONED), ("its epoch did not end", EXIT_TERMINATED)]


def test_a_process_that_may_not_be_told_keeps_nobody_from_being_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers of several users may live on one machine."""
    living = {7: "a", 8: "b", 9: "c"}
    told: list[int] = []

    def kill(process: int, number: int) -> None:
        assert number == signal.SIGTERM
        if process == 7:
            raise PermissionError
        if process == 8:
            raise ProcessLookupError  # it went by itself
        told.append(process)

    monkeypatch.setattr(joining, "kill", kill)
    monkeypatch.setattr(joining, "opened", lambda _url: nullcontext())
    monkeypatch.setattr(workers, "living_on_this_host", lambda _database: dict(living))
    monkeypatch.setattr(processes, "birth", lambda process: "a" if process == 7 else None)
    assert drain(timeout_seconds=3600) == ExitCode.FAILED
    assert told == [9]
    said = capsys.readouterr().err
    assert "process 7 is another user's" in said
    assert "1 worker told to go, 1 left" in said
