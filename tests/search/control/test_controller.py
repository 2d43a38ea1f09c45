"""The controller: its decisions, and whole runs in this process on the fake engine."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.control import controller as module
from search.control.controller import Controller, find_or_create, run_experiment
from search.control.crew import Assignment, CrewError, Departure, Lookout, ThreadCrew
from search.control.events import Event, Preparing, Progress, Started, Stopping, Trouble
from search.control.supervision import MAX_DEATHS, Interruption, Move, next_move
from search.experiment.spec import ExperimentSpec
from search.trials.claims import Look
from search.work.engines import trainer
from storage import queries
from storage.curves import Curves
from storage.database import Database
from storage.errors import DatabaseUnreachable, ExperimentBusy, ExperimentExists
from storage.experiments import Experiments
from storage.optuna_storage import open_optuna_storage
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE, SECONDS_VARIABLE


class TestNextMove:
    def _move(self, **seen: Any) -> Move:
        usual = {
            "signals": 0,
            "stopping": False,
            "deaths": 0,
            "alive": 2,
            "gone": 0,
            "running": 2,
            "work_left": False,
        }
        return next_move(**usual | seen)

    def test_watch_while_somebody_works(self) -> None:
        assert self._move() is Move.WATCH
        assert self._move(alive=0, running=1) is Move.WATCH, "workers of a dead controller"

    def test_finish_when_nothing_runs_and_nothing_is_left(self) -> None:
        assert self._move(alive=0, running=0) is Move.FINISH

    def test_hire_for_those_who_went_and_for_what_is_left(self) -> None:
        assert self._move(gone=1) is Move.HIRE
        assert self._move(alive=0, running=0, work_left=True) is Move.HIRE

    def test_nobody_is_hired_while_stopping(self) -> None:
        assert self._move(stopping=True, gone=1) is Move.WATCH
        assert self._move(stopping=True, gone=2, alive=0, running=0) is Move.STOP

    def test_second_signal_kills(self) -> None:
        assert self._move(signals=1, stopping=True) is Move.WATCH
        assert self._move(signals=2, stopping=True) is Move.KILL

    def test_give_up_after_deaths_in_a_row(self) -> None:
        assert self._move(deaths=MAX_DEATHS, gone=1) is Move.GIVE_UP
        assert self._move(deaths=MAX_DEATHS - 1, gone=1) is Move.HIRE


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)


def _run(url: str, spec: ExperimentSpec | None = None, events: list[Event] | None = None, **options: Any):
    seen = events if events is not None else []
    options = {"trainer": FAKE, "in_process": True} | options
    return run_experiment(spec or small_spec(), url, on_event=seen.append, **options)


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    """Opened after a run, to look at what it left."""
    with prepared(database, small_spec()) as made:
        yield made


class TestRun:
    def test_from_nothing_to_finished(self, database: Database) -> None:
        events: list[Event] = []
        outcome = _run(database.url, events=events)
        assert (outcome.state, outcome.reason, outcome.resumed) == ("finished", "", False)
        assert [type(event) for event in events[:3]] == [Preparing, Progress, Started]
        assert [(row.complete, row.trials) for row in outcome.studies] == [(6, 6), (6, 6)]
        last = [event for event in events if isinstance(event, Progress)][-1]
        assert (last.ended, last.trials) == (12, 12)
        experiment = Experiments(database).get("small")
        assert experiment.state == "finished"
        assert len(Curves(database).of_experiment(experiment.id)) == 36
        assert set(experiment.environment["versions"]) >= {"torch", "optuna", "shoal"}

    def test_many_slots_give_the_same_trials(self, database: Database) -> None:
        _run(database.url, small_spec(experiment="one"))
        _run(database.url, small_spec(experiment="four"), trainer=FOUR_SLOTS)
        curves = {}
        for name in ("one", "four"):
            points = Curves(database).of_experiment(Experiments(database).get(name).id)
            curves[name] = {
                (point.study_name.removeprefix(name), point.trial_number, point.epoch): point.metrics
                for point in points
                if "random" in point.study_name
            }
        assert curves["one"] == curves["four"]

    def test_a_deleted_study_fails_the_run_after_the_others_ended(self, database: Database) -> None:
        events: list[Event] = []

        def notice(event: Event) -> None:
            events.append(event)
            if isinstance(event, Started):
                optuna.delete_study(study_name="small/random/0", storage=open_optuna_storage(database.url))

        outcome = run_experiment(small_spec(), database.url, on_event=notice, trainer=FAKE, in_process=True)
        assert outcome.state == "failed"
        assert "deleted from Optuna's tables while the experiment ran: small/random/0;" in outcome.reason
        told = [event.message for event in events if isinstance(event, Trouble)]
        assert [message for message in told if "small/random/0" in message] == [
            f"{outcome.reason}; the other studies go on"
        ]
        assert (outcome.studies[0].study.name, outcome.studies[0].complete) == ("small/grid/0", 6)
        again = _run(database.url)
        assert (again.state, [row.complete for row in again.studies]) == ("finished", [6, 6])

    def test_again_runs_nothing_twice(self, database: Database) -> None:
        _run(database.url)
        outcome = _run(database.url)
        assert (outcome.state, outcome.resumed) == ("finished", True)
        assert sum(row.trials for row in outcome.studies) == 12

    def test_growth_adds_trials_replicates_and_methods(self, database: Database) -> None:
        _run(database.url)
        grown = small_spec(
            budget={"trials": 8}, replicates=2, methods={"grid": {}, "random": {"in_flight": 1}, "tpe": {}}
        )
        outcome = _run(database.url, grown)
        assert {row.study.name: row.complete for row in outcome.studies} == {
            "small/grid/0": 6,
            "small/random/0": 8,
            "small/tpe/0": 8,
            "small/grid/1": 6,
            "small/random/1": 8,
            "small/tpe/1": 8,
        }

    def test_another_space_under_the_same_name_is_refused(self, database: Database) -> None:
        _run(database.url)
        with pytest.raises(ExperimentExists, match=r"seed: was 3 .* now it is 4") as refused:
            _run(database.url, small_spec(seed=4))
        assert refused.value.existing.name == "small"
        assert Experiments(database).get("small").spec["seed"] == 3

    def test_second_controller_is_refused(self, database: Database) -> None:
        spec = small_spec()
        experiment, _ = find_or_create(Experiments(database), spec)
        with (
            Experiments(database).control(experiment),
            pytest.raises(ExperimentBusy, match="another process"),
        ):
            _run(database.url, small_spec(budget={"trials": 50}))
        assert Experiments(database).get("small").spec["budget"]["trials"] == 6

    def test_bayesian_in_flight_one_is_sequential(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"n_startup_trials": 3}}, budget={"trials": 8})
        _run(database.url, spec, trainer=FOUR_SLOTS)
        with prepared(database, spec) as running:
            trials = running.trials("tpe")
        assert all(
            before.datetime_complete <= after.datetime_start for before, after in itertools.pairwise(trials)
        )


SPACE = {"loss": ["cross_entropy"], "learning_rate": [0.01, 0.1, 1.0]}


class TestTrouble:
    def _spec(self, *losses: str, **changes: Any) -> ExperimentSpec:
        sections = {
            "space": SPACE | {"loss": [*SPACE["loss"], *losses]},
            "methods": {"grid": {}},
        }
        return small_spec(**sections | changes)

    def test_failing_trials_are_data(self, database: Database) -> None:
        spec = self._spec("raises", "memory", "diverges")
        outcome = _run(database.url, spec)
        assert outcome.state == "finished"
        (row,) = outcome.studies
        assert (row.complete, row.failed, row.trials) == (6, 6, 12)
        with prepared(database, spec) as running:
            by_loss: dict[str, list[Any]] = {}
            for trial in running.trials("grid"):
                by_loss.setdefault(trial.params["loss"], []).append(trial)
        assert {trial.user_attrs["reason"] for trial in by_loss["raises"]} == {"it raises"}
        assert {trial.state for trial in by_loss["memory"]} == {TrialState.FAIL}
        for trial in by_loss["diverges"]:
            assert (trial.state, trial.value, trial.last_step) == (TrialState.COMPLETE, 0.0, 2)
            assert trial.user_attrs["diverged"]
        assert row.best == max(trial.value for trial in by_loss["cross_entropy"])

    def test_workers_that_cannot_start(self, database: Database) -> None:
        events: list[Event] = []
        outcome = _run(database.url, events=events, trainer="tests.contracts.fake_engine:Missing")
        assert outcome.state == "failed"
        assert "workers died 3 times without progress: AttributeError" in outcome.reason
        assert sum(isinstance(event, Trouble) for event in events) == 3
        assert Experiments(database).get("small").state == "failed"

    def test_unknown_trainer(self) -> None:
        with pytest.raises(KeyError, match="nowhere"):
            trainer("nowhere")


class TestStop:
    def test_asked_from_elsewhere_then_resumed(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`shoal stop`: epochs end, trials are given back; going on trains no epoch twice."""
        log = tmp_path / "epochs.log"
        monkeypatch.setenv(LOG_VARIABLE, str(log))
        monkeypatch.setenv(SECONDS_VARIABLE, "0.3")
        experiments = Experiments(database)
        events: list[Event] = []

        def stop_soon(event: Event) -> None:
            events.append(event)
            if isinstance(event, Progress) and any(row.epochs > 4 for row in event.studies):
                experiments.request_stop(experiments.get("small").id)

        outcome = run_experiment(
            small_spec(), database.url, in_process=True, trainer=FOUR_SLOTS, on_event=stop_soon
        )
        assert outcome.state == "stopped"
        assert any(isinstance(event, Stopping) for event in events)
        assert sum(row.running for row in outcome.studies) == 0
        assert experiments.get("small").state == "stopped"
        first = len(log.read_text().splitlines())
        assert 0 < first < 36
        outcome = _run(database.url, trainer=FOUR_SLOTS)
        assert outcome.state == "finished"
        lines = log.read_text().splitlines()
        assert len(lines) == len(set(lines)) == 36

    def test_signals_are_counted_and_put_back(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        interruption = Interruption()
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.count == 2
        assert interruption.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_third_signal_ends_what_does_not_look(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), Interruption().listening():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_elsewhere_than_in_the_main_thread_signals_are_left_alone(self) -> None:
        seen = []

        def listen() -> None:
            with Interruption().listening():
                seen.append("ran")

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        assert seen == ["ran"]


class ScriptedCrew:
    """Workers that leave as a script says, one entry per look."""

    size = 2

    def __init__(self, *looks: list[str | None]) -> None:
        self.looks = list(looks)
        self.hired: list[str] = []
        self._here: list[str] = []
        self.dismissed = self.closed = False

    def hire(self, worker: str) -> None:
        self.hired.append(worker)
        self._here.append(worker)

    def departures(self, timeout: float) -> list[Departure]:
        if self.dismissed or not self.looks:
            return []
        endings = self.looks.pop(0)
        if not endings:
            threading.Event().wait(timeout)  # nobody leaves in this look
        return [
            Departure(self._here.pop(0), ending, "" if ending else "its process died") for ending in endings
        ]

    def pending(self) -> frozenset[str]:
        """A process begins at once."""
        return frozenset()

    def lost_nodes(self) -> frozenset[str]:
        """There is this machine alone."""
        return frozenset()

    def dismiss(self) -> None:
        self.dismissed = True

    def close(self) -> None:
        self.closed = True


class TestSupervision:
    def _outcome(self, running: Running, crew: ScriptedCrew):
        return Controller(
            running.database, running.storage, running.experiment, running.spec, resumed=False, on_event=print
        ).run(lambda: crew)

    def test_a_signal_while_workers_are_prepared_hires_none(self, running: Running) -> None:
        crew = ScriptedCrew()

        def make_crew() -> ScriptedCrew:
            os.kill(os.getpid(), signal.SIGTERM)
            return crew

        events: list[Event] = []
        outcome = Controller(
            running.database,
            running.storage,
            running.experiment,
            running.spec,
            resumed=False,
            on_event=events.append,
        ).run(make_crew)
        assert outcome.state == "stopped"
        assert Stopping("SIGTERM") in events
        assert crew.hired == []
        assert crew.closed

    def test_a_signal_that_breaks_off_the_start_is_no_failure(self, running: Running) -> None:
        def make_crew() -> ScriptedCrew:
            os.kill(os.getpid(), signal.SIGTERM)
            raise CrewError("Ray can't be started")

        outcome = Controller(
            running.database, running.storage, running.experiment, running.spec, resumed=False, on_event=print
        ).run(make_crew)
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
        outcome = self._outcome(running, crew)
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 2 + 2

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
            self._outcome(running, ScriptedCrew())

    def test_dead_workers_are_replaced_until_it_leads_nowhere(self, running: Running) -> None:
        crew = ScriptedCrew([None], [None, None], [None])
        outcome = self._outcome(running, crew)
        assert outcome.state == "failed"
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 1 + 2
        assert crew.dismissed
        assert crew.closed

    def test_workers_that_leave_work_undone_are_not_hired_for_ever(self, running: Running) -> None:
        crew = ScriptedCrew(["exhausted", "exhausted"], ["exhausted"], ["exhausted"], ["exhausted"])
        assert self._outcome(running, crew).state == "failed"

    def test_one_that_left_for_want_of_work_is_missed_once_there_is_some(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it left undone is taken by those who stay; only what two looks saw open needs another."""
        monkeypatch.setattr(module, "RECOVER_LOOKS", 1)
        crew = ScriptedCrew(["idle"], [], [], [None, None], [None, None], [None])
        outcome = Controller(
            running.database,
            running.storage,
            running.experiment,
            running.spec,
            resumed=False,
            on_event=print,
            rehires=True,
        ).run(lambda: crew)
        assert outcome.reason == "workers died 3 times without progress: its process died"
        assert len(crew.hired) == 2 + 1 + 2 + 2

    def test_one_that_waits_for_room_is_dismissed_when_nothing_is_left(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crew = ScriptedCrew(["exhausted"])
        crew.pending = lambda: frozenset(crew.hired[1:])  # type: ignore[method-assign]
        monkeypatch.setattr(module.Openings, "now", lambda *_: 0)
        monkeypatch.setattr(module.Openings, "ever", lambda *_: False)
        outcome = self._outcome(running, crew)
        assert (outcome.state, len(crew.hired), crew.dismissed) == ("finished", 2, True)

    def test_no_more_workers_than_trials_at_a_time(self, database: Database) -> None:
        with prepared(database, small_spec(methods={"tpe": {}})) as running:
            crew = ScriptedCrew([None], [None], [None])
            self._outcome(running, crew)
            assert len(crew.hired) == 1 + 2


def test_a_worker_in_a_thread_reports_what_ended_it(database_url: str) -> None:
    crew = ThreadCrew(Assignment(database_url, "missing", FAKE, "cpu"))
    assert crew.departures(0) == []
    crew.hire("w")
    (left,) = crew.departures(60)
    assert (left.worker, left.ending) == ("w", None)
    assert "there is no experiment 'missing'" in left.reason
    assert crew.departures(0) == []


def test_a_lookout_reads_the_experiment_only_when_it_has_changed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = Experiments(database)
    record, _ = find_or_create(experiments, small_spec())
    lookout = Lookout(experiments, record)
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "get", None)
        assert lookout() == Look(stop=False)
    experiments.request_stop(record.id)
    assert lookout() == Look(stop=True), "no new version: only the request"
    grown = small_spec(budget={"trials": 9})
    experiments.grow(record.id, grown.to_json(), grown.studies())
    assert lookout() == Look(stop=True, grown=grown)
    assert lookout() == Look(stop=True)


def test_an_assignment_does_not_show_its_url() -> None:
    assert "secret" not in repr(Assignment("postgresql://u:secret@h/d", "e", "plain", "cpu"))
