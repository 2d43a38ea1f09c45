"""Signals that come in rows: what a dying parent sends, and what its third signal leaves behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import pytest

from search.control.controller import Controller
from search.control.supervision import PR_SET_PDEATHSIG, Interruption
from storage.experiments import Experiments
from tests.contracts.experiments import Running

PR_GET_PDEATHSIG = 2


def signal_of_the_parents_death() -> int:
    """What this thread is sent when its parent dies; 0: nothing."""
    found = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(found)) == 0
    return found.value


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's own")
def test_the_death_of_a_parent_with_many_threads_is_one_signal() -> None:
    """It sends one for each thread that ends, which may be more than end a run in order."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_PDEATHSIG, signal.SIGTERM) == 0
    try:
        interruption = Interruption()
        with interruption.listening():
            assert signal_of_the_parents_death() == signal.SIGTERM, "it is still to be heard"
            os.kill(os.getpid(), signal.SIGINT)
            assert signal_of_the_parents_death() == signal.SIGTERM, "Ctrl-C sets no limit to the end"
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal_of_the_parents_death() == 0
        assert interruption.count == 2
    finally:
        prctl(PR_SET_PDEATHSIG, 0)


def test_who_sends_three_signals_has_stopped_the_run(running: Running) -> None:
    """Not failed: it was asked to end, and can go on."""

    def make_crew() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Controller(
            running.database, running.storage, running.experiment, running.spec, resumed=False, on_event=print
        ).run(make_crew)  # type: ignore[arg-type]  # it never gives one
    assert Experiments(running.database).get(running.experiment.name).state == "stopped"
