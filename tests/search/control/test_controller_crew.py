"""What a controller does as its workers leave, die or wait, with a crew that follows a script."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from search.control import controller as module
from search.control.controller import Controller
from search.control.crew import CrewError
from search.control.events import Event, Outcome, Stopping, Trouble
from search.trials.openings import Openings
from storage import queries
from storage.database import Database
from storage.errors import DatabaseUnreachable
from tests.contracts.experiments import Running, prepared, small_spec
from tests.search.control.scripted_crew import ScriptedCrew

pytestmark = pytest.mark.usefixtures("quick_looks")


class TestSupervision:
    def _outcome(self, running: Running, make_crew: Callable[[], ScriptedCrew], **options: Any) -> Outcome:
        options = {"resumed": False, "on_event": print} | options
        return Controller(running.database, running.storage, running.experiment, running.spec, **options).run(
            make_crew
        )

    def test_a_signal_while_workers_are_prepared_hires_none(self, running: Running) -> None:
        crew = ScriptedCrew()

        def make_crew() -> ScriptedCrew:
            os.kill(os.getpid(), signal.SIGTERM)
            return crew

        events: list[Event] = []
        outcome = self._outcome(running, make_crew, on_event=events.append)
        assert outcome.state == "stopped"
        assert Stopping("SIGTERM") in events
        assert crew.hired == []
        assert crew.closed

    def test_a_signal_that_breaks_off_the_start_is_no_failure(self, running: Running) -> None:
        def make_crew() -> ScriptedCrew:
            os.kill(os.getpid(), signal.SIGTERM)
            raise CrewError("Ray can't be started")

        outcome = self._outcome(running, make_crew)
        assert outcome.state == "stopped"

    def test_a_database_that_is_away_is_waited_for(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who died meanwhile is not forgotten, and counts once."""
        progress, calls = queries.progress, []

        def sometimes(*asked: Any, **options: Any) -> Any:
            calls.append(asked)
            if len(calls) == 2:  # the first look at the crew
                raise DatabaseUnreachable("it is away", retryable=True)
            return progress(*asked, **options)

        monkeypatch.setattr(queries, "progress", sometimes)
        crew = ScriptedCrew([None], [None], [None, None], [None])
        outcome = self._outcome(running, lambda: crew)
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 2 + 2

    def test_it_is_waited_for_also_where_workers_are_missing(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The look at what they could take is one of those that a database may fail at."""
        monkeypatch.setattr(module, "RECOVER_LOOKS", 1)
        now, calls = module.Openings.now, []

        def sometimes(openings: Openings, wanted: int) -> int:
            calls.append(wanted)
            if len(calls) == 1:
                raise DatabaseUnreachable("it is away", retryable=True)
            return now(openings, wanted)

        monkeypatch.setattr(module.Openings, "now", sometimes)
        events: list[Event] = []
        crew = ScriptedCrew(["idle"], [], [], [], [None, None], [None, None], [None])
        outcome = self._outcome(running, lambda: crew, rehires=True, on_event=events.append)
        assert Trouble("the database is away, waiting for it: it is away") in events
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 1 + 2 + 2

    def test_one_that_can_not_be_reached_at_all_ends_the_run(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        progress, calls = queries.progress, []

        def gone(*asked: Any, **options: Any) -> Any:
            calls.append(asked)
            if len(calls) == 1:
                return progress(*asked, **options)
            raise DatabaseUnreachable("the password is wrong")

        monkeypatch.setattr(queries, "progress", gone)
        with pytest.raises(DatabaseUnreachable, match="the password is wrong"):
            self._outcome(running, ScriptedCrew)

    def test_a_crew_that_can_not_be_dismissed_is_closed(self, running: Running) -> None:
        """What it was started with (processes, folders, variables) would stay."""
        crew = ScriptedCrew([None], [None, None], [None])

        def gone() -> None:
            raise ConnectionError("the cluster is gone")

        crew.dismiss = gone  # type: ignore[method-assign]
        with pytest.raises(ConnectionError):
            self._outcome(running, lambda: crew)
        assert crew.closed

    def test_dead_workers_are_replaced_until_it_leads_nowhere(self, running: Running) -> None:
        crew = ScriptedCrew([None], [None, None], [None])
        outcome = self._outcome(running, lambda: crew)
        assert outcome.state == "failed"
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 1 + 2
        assert crew.dismissed
        assert crew.closed

    def test_workers_that_leave_work_undone_are_not_hired_for_ever(self, running: Running) -> None:
        crew = ScriptedCrew(["exhausted", "exhausted"], ["exhausted"], ["exhausted"], ["exhausted"])
        assert self._outcome(running, lambda: crew).state == "failed"

    def test_one_that_left_for_want_of_work_is_missed_once_there_is_some(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it left undone is taken by those who stay; only what two looks saw open needs another."""
        monkeypatch.setattr(module, "RECOVER_LOOKS", 1)
        crew = ScriptedCrew(["idle"], [], [], [None, None], [None, None], [None])
        outcome = self._outcome(running, lambda: crew, rehires=True)
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 1 + 2 + 2

    def test_one_that_waits_for_room_is_dismissed_when_nothing_is_left(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crew = ScriptedCrew(["exhausted"])
        crew.pending = lambda: frozenset(crew.hired[1:])  # type: ignore[method-assign]
        monkeypatch.setattr(module.Openings, "now", lambda *_: 0)
        monkeypatch.setattr(module.Openings, "ever", lambda *_: False)
        outcome = self._outcome(running, lambda: crew)
        assert (outcome.state, len(crew.hired), crew.dismissed) == ("finished", 2, True)

    def test_no_more_workers_than_trials_at_a_time(self, database: Database) -> None:
        with prepared(database, small_spec(methods={"tpe": {}})) as running:
            crew = ScriptedCrew([None], [None], [None])
            self._outcome(running, lambda: crew)
            assert len(crew.hired) == 1 + 2
