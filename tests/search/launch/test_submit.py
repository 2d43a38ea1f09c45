"""Submitting to a cluster that is an HTTP server of the test's, with a real database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from search.launch.follow import Follower
from search.launch.jobs import ClusterError, JobServer, JobView
from search.launch.submit import Submission, submit
from storage.database import Database
from storage.errors import ExperimentBusy, ExperimentExists
from storage.experiments import Experiments
from storage.launches import Launches
from tests.contracts.experiments import small_spec
from tests.contracts.processes import PATIENCE
from tests.search.launch.fake_head import FakeHead, fake_head, patient_server


@pytest.fixture
def head() -> Iterator[FakeHead]:
    with fake_head() as served:
        yield served


@pytest.fixture
def server(head: FakeHead) -> JobServer:
    return patient_server(head)


def again(database: Database, server: JobServer, **changes: object) -> Submission:
    return submit(database, small_spec(**changes), server, options=["--workers", "3"])


def test_the_experiment_goes_into_the_database_and_names_alone_to_the_cluster(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    done = again(database, server)
    assert (done.started, done.launch.generation, done.launch.submission) == (True, 1, "shoal-small-1")
    assert Experiments(database).get("small").state == "created"
    (body,) = head.bodies
    assert body["entrypoint"] == "shoal resume --launch 1 --workers 3 -- small"
    assert body["runtime_env"] == {}
    assert "postgresql" not in str(body)


def test_of_many_at_the_same_instant_one_starts_it(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    together = Barrier(4)

    def submitted(_: int) -> Submission:
        with Database(database.url) as own:
            together.wait()
            return again(own, server)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(submitted, range(4)))
    assert sorted(one.started for one in found) == [False, False, False, True]
    assert {one.launch.generation for one in found} == {1}
    assert list(head.jobs) == ["shoal-small-1"]


def test_where_nobody_answers_nothing_is_made(database: Database) -> None:
    with fake_head(token="right") as head, pytest.raises(ClusterError):
        again(database, patient_server(head, token="wrong"))
    assert Experiments(database).list() == []


def test_a_token_goes_to_no_address_of_the_databases(
    database: Database, head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with fake_head(token="secret") as other:
        again(database, patient_server(other, token="secret"))
        other.authorizations.clear()
        again(database, patient_server(head, token="secret"))
        assert other.authorizations
        assert set(other.authorizations) == {""}


def test_one_that_never_arrived_is_sent_again_under_its_name(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    head.answer, head.spared = (503, "starting"), {"/api/version"}
    with pytest.raises(ClusterError):
        again(database, server)
    head.answer = None
    done = again(database, server)
    assert (done.started, done.launch.generation) == (True, 1)


def test_one_whose_answer_was_lost_is_found(database: Database, head: FakeHead, server: JobServer) -> None:
    again(database, server)
    head.jobs["shoal-small-1"]["status"] = "RUNNING"
    assert not again(database, server).started
    assert len(head.bodies) == 1


def test_after_its_end_the_next_generation(database: Database, head: FakeHead, server: JobServer) -> None:
    first = again(database, server)
    head.jobs["shoal-small-1"]["status"] = "FAILED"
    second = again(database, server)
    assert (second.started, second.launch.generation) == (True, 2)
    assert Launches(database).of_experiment(first.experiment.id)[0].state == "lost"
    # A new head knows nothing of the old one's jobs.
    Launches(database).start(first.experiment.id, 2)
    head.jobs.clear()
    assert again(database, server).launch.generation == 3


def test_a_run_elsewhere_is_not_disturbed(database: Database, head: FakeHead, server: JobServer) -> None:
    first = again(database, server)
    head.jobs["shoal-small-1"]["status"] = "SUCCEEDED"
    Launches(database).end(first.experiment.id, 1, "finished", exit_code=0)
    experiments = Experiments(database)
    with experiments.control(first.experiment), pytest.raises(ExperimentBusy, match="by a process elsewhere"):
        again(database, server)
    assert len(head.jobs) == 1


def test_submitted_to_another_cluster_while_the_first_has_it(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    again(database, server)
    with fake_head() as other:
        done = again(database, patient_server(other))
        assert (done.started, done.launch.address) == (False, head.address)
        assert other.jobs == {}
        head.jobs["shoal-small-1"]["status"] = "STOPPED"
        assert again(database, patient_server(other)).launch.address == other.address


def test_what_was_asked_before_is_forgotten_and_what_is_asked_now_is_not(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    first = again(database, server).experiment
    experiments = Experiments(database)
    experiments.request_stop(first.id)
    again(database, server)
    assert experiments.stop_requested(first.id), "its driver has not begun: it will heed it"
    head.jobs["shoal-small-1"]["status"] = "SUCCEEDED"
    again(database, server)
    assert not experiments.stop_requested(first.id)


def test_a_grown_file_waits_for_the_end_of_what_runs(
    database: Database, head: FakeHead, server: JobServer
) -> None:
    again(database, server)
    more = {"budget": {"trials": 9}, "methods": {"random": {}, "grid": {}, "qmc": {}}}
    grown = again(database, server, budget={"trials": 9})
    assert (grown.started, grown.outdated) == (False, True)
    assert Experiments(database).get("small").spec["budget"]["trials"] == 6
    head.jobs["shoal-small-1"]["status"] = "SUCCEEDED"
    assert again(database, server, **more).experiment.spec["budget"]["trials"] == 9
    with pytest.raises(ExperimentExists, match=r"budget\.trials"):
        again(database, server)


class TestFollowing:
    def _follower(self, database: Database, server: JobServer, done: Submission, steps: list) -> tuple:
        said: list[str] = []
        told: list[str] = []
        clock = [0.0]

        def sleep(seconds: float) -> None:
            clock[0] += seconds
            if steps:
                steps.pop(0)()

        follower = Follower(
            database,
            server,
            done.launch,
            write=said.append,
            tell=told.append,
            sleep=sleep,
            clock=lambda: clock[0],
        )
        return follower, said, told

    def test_the_log_as_it_grows_and_the_code_of_the_run(
        self, database: Database, head: FakeHead, server: JobServer
    ) -> None:
        done = again(database, server)
        launches, job = Launches(database), head.jobs["shoal-small-1"]

        def begins() -> None:
            launches.start(done.experiment.id, 1)
            job["status"] = "RUNNING"
            head.logs["shoal-small-1"] = "one\n"

        def ends() -> None:
            launches.end(done.experiment.id, 1, "stopped", exit_code=1, reason="asked to stop")
            head.logs["shoal-small-1"] += "two\n"

        def is_over() -> None:
            head.logs["shoal-small-1"] += "three\n"
            job["status"] = "FAILED"

        follower, said, told = self._follower(database, server, done, [begins, ends, is_over])
        seen = follower.run()
        assert (seen.launch.state, seen.launch.exit_code) == ("stopped", 1)
        assert said == ["one\n", "two\n", "three\n"]
        assert told == []

    def test_a_driver_that_died_says_nothing(
        self, database: Database, head: FakeHead, server: JobServer
    ) -> None:
        done = again(database, server)
        Launches(database).start(done.experiment.id, 1)
        head.jobs["shoal-small-1"] |= {"status": "FAILED", "message": "killed"}
        follower, _, _ = self._follower(database, server, done, [])
        seen = follower.run()
        assert (seen.launch.state, seen.launch.exit_code, seen.message) == ("lost", None, "killed")

    def test_a_cluster_that_is_away_for_a_while_ends_nothing(
        self, database: Database, head: FakeHead, server: JobServer
    ) -> None:
        done = again(database, server)

        def away() -> None:
            head.answer = (503, "starting")

        def back() -> None:
            head.answer = None
            Launches(database).end(done.experiment.id, 1, "finished", exit_code=0)
            head.jobs["shoal-small-1"]["status"] = "SUCCEEDED"

        follower, _, told = self._follower(database, server, done, [away, *[lambda: None] * 60, back])
        assert follower.run().launch.exit_code == 0
        assert len(told) == 1
        assert "waiting for it" in told[0]

    def test_but_not_for_ever_unless_somebody_runs_it(
        self, database: Database, head: FakeHead, server: JobServer
    ) -> None:
        done = again(database, server)
        head.answer = (503, "gone")
        steps = [lambda: None] * 200
        follower, _, _ = self._follower(database, server, done, steps)
        with Experiments(database).control(done.experiment):
            steps[150] = lambda: Launches(database).end(done.experiment.id, 1, "finished", exit_code=0)
            assert follower.run().launch.exit_code == 0
        Launches(database).start(done.experiment.id, 1)
        follower, _, _ = self._follower(database, server, done, [])
        with pytest.raises(ClusterError, match="503"):
            follower.run()


def test_another_cluster_is_asked_as_patiently(
    database: Database, head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was given up for gone would start a second driver."""
    again(database, patient_server(head))
    asked, look = [], JobServer.look

    def noted(server: JobServer, submission: str) -> JobView:
        asked.append((server.address, server.timeout))
        return look(server, submission)

    monkeypatch.setattr(JobServer, "look", noted)
    with fake_head() as other:
        assert not again(database, patient_server(other)).started
    assert asked == [(head.address, PATIENCE)]
