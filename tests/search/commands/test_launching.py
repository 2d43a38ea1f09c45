"""`shoal submit`, `logs`, `stop` and `status` of what was submitted: on a cluster of the test's making."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.cli import app
from search.commands.launching import ThereOptions, environment_there
from search.commands.running import resume
from search.failures import CommandError
from search.trials.precisions import held_precision
from search.work.programs import StoredChoices
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.launches import Launches
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.shoal_command import document, printed, tiny
from tests.search.launch.fake_head import FakeHead, fake_head

SECRET = "postgresql://me:hunter2@db.internal:5432/shoal"
OPEN = "postgresql://me@db.internal:5432/shoal"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "SHOAL_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with fake_head() as served:
        yield served


@pytest.fixture
def file(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(URL_VARIABLE, database.url)
    path = tmp_path / "far.yaml"
    path.write_text(tiny("far"), encoding="utf-8")
    return str(path)


def test_submitted_shown_stopped_and_looked_up(
    head: FakeHead, file: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "submit", file, "--address", head.address, "--workers", "5", "--device", "cuda")
    assert (found["schema"], found["started"], found["submission"]) == ("shoal.submit/1", True, "shoal-far-1")
    (body,) = head.bodies
    told = "--ray-address auto --workers 5 --device cuda --trainer fused --idle-seconds 60"
    assert body["entrypoint"].startswith(f"shoal resume --launch 1 {told} ")
    assert "postgresql" not in str(body)
    out, err = printed(capsys, "submit", file, "--address", head.address)
    assert (out, err.splitlines()[0]) == ("", f"far runs already, as shoal-far-1 on {head.address}")

    shown = document(capsys, "status", "far")
    assert (shown["state"], shown["controlled"], shown["launch"]["state"]) == ("created", False, "submitted")
    out, _ = printed(capsys, "status", "far")
    assert out.startswith("far  submitted: its driver has not begun\n")
    assert f"launch 1 (shoal-far-1) on {head.address}: submitted at 20" in out
    out, _ = printed(capsys, "status")
    assert "created" in out
    assert "interrupted" not in out

    _, err = printed(capsys, "stop", "far")
    assert "stops as soon as its driver begins" in err
    experiment = Experiments(database).get("far")
    assert experiment.stop_requested

    head.logs["shoal-far-1"] = "from the driver\x1b[31m\n"
    out, _ = printed(capsys, "logs", "far", "--driver")
    assert out == "from the driver\ufffd[31m\n"
    out, _ = printed(capsys, "logs", "far")
    assert f"launch 1 (shoal-far-1) is submitted to {head.address}" in out
    assert printed(capsys, "logs", "far", "--worker", "nobody")[0] == ""


def test_the_precision_reaches_the_driver(
    head: FakeHead, file: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "submit", file, "--address", head.address, "--precision", "bf16")
    (body,) = head.bodies
    command, bound, _ = app.parse_args(shlex.split(body["entrypoint"])[1:], exit_on_error=False)
    assert command is resume
    assert bound.arguments["options"].precision == "bf16"
    assert bound.arguments["experiment"] == "far"
    (launch,) = Launches(database).of_experiment(Experiments(database).get("far").id)
    assert "--precision bf16" in " ".join(launch.options["options"])


def test_a_precision_that_its_workers_would_refuse_is_refused_before_anything_is_sent(
    head: FakeHead, file: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "submit", file, "--address", head.address)
    experiment = Experiments(database).get("far")
    assert held_precision(StoredChoices(database, experiment.id), "cpu", "bf16") == "bf16"
    head.jobs["shoal-far-1"]["status"] = "SUCCEEDED"
    again = ("submit", file, "--address", head.address, "--precision")
    _, err = printed(capsys, *again, "fp32", code=2)
    assert "computed in bf16" in err
    assert "--precision" in err
    assert len(head.bodies) == 1
    printed(capsys, *again, "bf16")
    assert len(head.bodies) == 2


def test_a_drivers_log_costs_no_token_unless_its_cluster_is_named(
    file: str, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with fake_head(token="secret") as head:
        printed(capsys, "submit", file, "--address", head.address)
        head.authorizations.clear()
        _, err = printed(capsys, "logs", "far", "--driver", code=5)
        assert f"--address {head.address}" in err
        assert head.authorizations == [""]
        printed(capsys, "logs", "far", "--driver", "--address", head.address)
        assert head.authorizations[-1] == "Bearer secret"


def test_the_log_tells_what_became_of_trials(
    file: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    with prepared(database, small_spec(methods={"random": {}})) as running:
        with running.broker("one", retires=True) as broker:
            for claim in broker.claim(2):
                broker.retry(claim, "no memory\n  left")
            broker.flush()
        out, _ = printed(capsys, "logs", "small")
        lines = [line.partition("UTC  ")[2] for line in out.splitlines()]
        assert "one  trial 0 of small/random/0 begins" in lines
        assert "one  trial 1 of small/random/0 is queued again: this attempt failed: no memory left" in lines
        assert len(printed(capsys, "logs", "small", "--lines", "1")[0].splitlines()) == 1
        # Nobody runs it: there is nothing to follow.
        assert printed(capsys, "logs", "small", "--follow")[0] == out


def test_followed_to_its_end_with_the_runs_exit_code(
    head: FakeHead,
    file: str,
    database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed(capsys, "submit", file, "--address", head.address)
    experiment = Experiments(database).get("far")
    Launches(database).end(experiment.id, 1, "stopped", exit_code=1, reason="asked to stop")
    head.jobs["shoal-far-1"]["status"] = "FAILED"
    head.logs["shoal-far-1"] = "the end\n"
    out, _ = printed(capsys, "logs", "far", "--driver", "--follow", code=1)
    assert out == "the end\n"
    # A driver that dies each time: started again as often as was said.
    monkeypatch.setattr("search.launch.follow.LAST_WORDS_SECONDS", 0.0)
    kept = head.reply

    def dies(method: str, path: str, body: bytes, authorization: str) -> tuple[int, str]:
        answer = kept(method, path, body, authorization)
        if method == "POST":
            head.jobs[head.bodies[-1]["submission_id"]]["status"] = "FAILED"
        return answer

    monkeypatch.setattr(head, "reply", dies)
    _, err = printed(capsys, "submit", file, "--address", head.address, "--follow", "--retry", "2", code=1)
    assert "error: the driver of far died, or its cluster did" in err
    assert sorted(head.jobs) == [f"shoal-far-{number}" for number in (1, 2, 3, 4)]
    states = [launch.state for launch in Launches(database).of_experiment(experiment.id)]
    assert states == ["stopped", "lost", "lost", "lost"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "where to?"),
        (("--address", "ray://head:10001"), 2, "ray:// is not what a Ray cluster takes jobs by"),
        (("--address", "http://a:b@head"), 2, "holds no user or password"),
        (("--address", "http://127.0.0.1:1"), 5, "can't reach Ray at http://127.0.0.1:1"),
        (("--address", "http://127.0.0.1:1", "--retry", "1"), 2, "--retry wants --follow"),
        (("--address", "http://127.0.0.1:1", "--cluster-database", SECRET), 2, "would be seen by others"),
    ],
)
def test_what_cannot_be_submitted(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    head: FakeHead,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = printed(capsys, "submit", file, *arguments, code=code)
    assert said in err
    assert "hunter2" not in out + err
    assert "next: " in err or code == 2


def test_all_problems_of_a_file_before_anything_is_made(
    head: FakeHead, tmp_path: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        tiny("bad").replace("trials: 4", "trials: -4").replace("seed: 3", "seed: x"), encoding="utf-8"
    )
    url = ("--database", database.url)
    _, err = printed(capsys, "submit", str(path), "--address", head.address, *url, code=2)
    assert "has 2 problems" in err
    assert Experiments(database).list() == []
    assert head.seen == []


def test_a_password_is_sent_only_if_that_is_said() -> None:
    assert environment_there(ThereOptions(), SECRET) == {}
    assert environment_there(ThereOptions(cluster_database=OPEN), SECRET) == {URL_VARIABLE: OPEN}
    for hidden in (SECRET, "postgresql://db/shoal?password=hunter2"):
        with pytest.raises(CommandError) as caught:
            environment_there(ThereOptions(cluster_database=hidden), None)
        assert "hunter2" not in str(caught.value.failure)
        sent = environment_there(ThereOptions(cluster_database=hidden, send_database_url=True), None)
        assert sent == {URL_VARIABLE: hidden}
    sent = environment_there(ThereOptions(send_database_url=True), SECRET)
    assert "hunter2" in sent[URL_VARIABLE]


def test_a_driver_needs_to_be_told_of_its_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    for name in (URL_VARIABLE, f"{URL_VARIABLE}_FILE"):
        monkeypatch.delenv(name, raising=False)
    _, err = printed(capsys, "resume", "--launch", "1", "far", code=2)
    assert "has not been told where the database is" in err
    _, err = printed(capsys, "resume", "--launch", "1", "far", "--database", database.url, code=3)
    assert "it was submitted with another database than" in err


def test_a_driver_notes_how_its_run_failed(capsys: pytest.CaptureFixture[str], database: Database) -> None:
    with prepared(database, small_spec()) as running:
        experiment = running.experiment
    launches = Launches(database)
    launches.add(experiment.id, 1, "shoal-small-1", "http://head:8265", {})
    url = ("--database", database.url)
    _, err = printed(capsys, "resume", "--launch", "1", "--ray-address", "127.0.0.1:1", *url, "small", code=5)
    newest = launches.newest(experiment.id)
    assert newest is not None
    assert (newest.state, newest.exit_code) == ("failed", 5)
    assert newest.reason is not None
    assert "can't reach Ray at 127.0.0.1:1" in newest.reason
    assert "can't reach Ray at 127.0.0.1:1" in err


def test_a_driver_heeds_a_stop_that_came_before_it(
    capsys: pytest.CaptureFixture[str], database: Database
) -> None:
    with prepared(database, small_spec()) as running:
        experiment = running.experiment
    launches = Launches(database)
    launches.add(experiment.id, 1, "shoal-small-1", "http://head:8265", {})
    Experiments(database).request_stop(experiment.id)
    url = ("--database", database.url)
    printed(capsys, "resume", "--launch", "1", "--in-process", *url, "small", code=1)
    newest = launches.newest(experiment.id)
    assert newest is not None
    assert (newest.state, newest.exit_code, newest.reason) == ("stopped", 1, "asked to stop")
