"""`shoal schedule` as a user meets it: good input, bad input, and what it says."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from search.commands.firing import GOOD
from search.failures import ExitCode
from search.schedules import processes
from search.trials.precisions import held_precision
from search.work.programs import StoredChoices
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.schedules import Schedules
from tests.contracts.schedules import FakeLauncher, fire
from tests.contracts.shoal_command import ONE_METHOD, document, printed, tiny

NIGHTLY = ("--cron", "0 2 * * *")


@pytest.fixture(autouse=True)
def folder(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with an experiment file, and an empty database that commands find."""
    (tmp_path / "nightly.yaml").write_text(tiny("nightly", *ONE_METHOD), encoding="utf-8")
    monkeypatch.setenv(URL_VARIABLE, database.url)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launcher(database: Database, monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    """Processes that end at once, as they are told."""
    fake = FakeLauncher(database)
    start = fake.start

    def ends_at_once(file, options):
        child = start(file, options)
        fake.ends()
        return child

    monkeypatch.setattr(fake, "start", ends_at_once)
    monkeypatch.setattr(processes, "ShoalLauncher", lambda *_: fake)
    return fake


@pytest.mark.parametrize("verb", ["", "list", "show", "pause", "resume", "remove", "fire", "run", "render"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    out, err = printed(capsys, "schedule", *verb.split(), "--help")
    assert f"Usage: shoal schedule {verb}".rstrip() in out
    assert err == ""


def test_a_schedule_is_made_listed_shown_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = printed(
        capsys, "schedule", "nightly.yaml", *NIGHTLY, "--timezone", "Europe/Berlin", "--budget-hours", "6",
        "--stalled-minutes", "30", "--webhook", "file:/run/secrets/hook", "--workers", "2",
    )  # fmt: skip
    assert "made: nightly fires" in said
    assert "02:00" in said
    listed, _ = printed(capsys, "schedule", "list")
    assert "nightly" in listed
    assert "0 2 * * *" in listed
    shown, said = printed(capsys, "schedule", "show", "nightly")
    for words in ("6 h 0 min", "30 min 0 s", "file:/run/secrets/hook", "workers=2", "Europe/Berlin"):
        assert words in shown
    assert "it has not fired yet" in said
    printed(capsys, "schedule", "remove", "nightly")
    _, said = printed(capsys, "schedule", "list")
    assert "no schedules yet" in said


def test_an_address_that_may_be_a_password_is_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--webhook", "https://hooks.example.org/services/s3cret", "--webhook-format", "slack")
    _, said = printed(capsys, "schedule", "nightly.yaml", *NIGHTLY, *arguments, code=ExitCode.BAD_INPUT)
    assert "--webhook file:/PATH" in said
    assert "s3cret" not in said
    _, said = printed(capsys, "schedule", "list")
    assert "no schedules yet" in said


def test_json_says_the_same_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--webhook", "http://127.0.0.1:9000/services/s3cret")
    made = document(capsys, "schedule", "nightly.yaml", *NIGHTLY, *arguments)
    assert (made["schema"], made["declared"], made["paused"]) == ("shoal.schedule/1", "made", False)
    [listed] = document(capsys, "schedule", "list")["schedules"]
    assert listed["schedule"] == "nightly"
    assert listed["last"] is None
    shown = document(capsys, "schedule", "show", "nightly")
    assert shown["firings"] == []
    assert "s3cret" not in json.dumps([made, listed, shown])


def test_every_problem_is_listed_at_once(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "bad.yaml").write_text(tiny("nightly") + "surprise: 1\n", encoding="utf-8")
    failed = document(
        capsys, "schedule", "bad.yaml", "--cron", "0 25 * * *", "--timezone", "Mars/Base", "--webhook",
        "http://example.org", "--budget-hours", "inf", "--address", "ftp://x", "--in-process",
        "--name", "no name", code=ExitCode.BAD_INPUT,
    )["error"]  # fmt: skip
    places = [problem["place"].split(" ")[0] for problem in failed["problems"]]
    assert places == [
        "surprise",
        "cron",
        "timezone",
        "budget-hours",
        "webhook",
        "address",
        "in-process",
        "name",
    ]
    assert all(problem["message"] for problem in failed["problems"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget-hours", "0"), "budget-hours"),
        (("--stalled-minutes", "-1"), "stalled-minutes"),
        (("--late-minutes", "-1"), "late-minutes"),
        (("--stalled-minutes", "nan"), "stalled-minutes"),
        (("--overlap", "both"), "overlap"),
        (("--each", "old"), "each"),
        (("--webhook-format", "xml"), "webhook-format"),
        (("--workers", "0"), "workers"),
        (("--precision", "fp8"), "precision"),
        (("--webhook-skipped",), "webhook-skipped"),
        (("--name", "n" * 57), "at most 56"),
        (("--name", ""), "name"),
        (("--address", "http://user:pw@head"), "address"),
    ],
)
def test_bad_options_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    _, message = printed(capsys, "schedule", "nightly.yaml", *NIGHTLY, *arguments, code=ExitCode.BAD_INPUT)
    assert said in message
    assert "Traceback" not in message


def test_the_precision_is_stored_with_the_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    made = document(capsys, "schedule", "nightly.yaml", *NIGHTLY, "--precision", "bf16")
    assert made["options"]["precision"] == "bf16"
    assert "precision=bf16" in printed(capsys, "schedule", "show", "nightly")[0]
    _, said = printed(capsys, "schedule", "nightly.yaml", *NIGHTLY, code=ExitCode.CONFLICT)
    assert "--replace" in said
    changed = document(capsys, "schedule", "nightly.yaml", *NIGHTLY, "--replace")
    assert "precision" not in changed["options"], "what was stored before there was a choice says none"


def test_a_precision_that_can_not_be_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], database: Database
) -> None:
    tf32 = (*NIGHTLY, "--precision", "tf32", "--device", "cpu")
    _, said = printed(capsys, "schedule", "nightly.yaml", *tf32, code=ExitCode.BAD_INPUT)
    assert "tf32 needs a GPU" in said
    begun = Experiments(database).create("nightly", {}, "0" * 64, {}, [("random", 0, "nightly/random/0")])
    assert held_precision(StoredChoices(database, begun.id), "cpu", "bf16") == "bf16"
    on = ("schedule", "nightly.yaml", *NIGHTLY, "--each", "continue", "--precision")
    _, said = printed(capsys, *on, "fp32", code=ExitCode.BAD_INPUT)
    assert "computed in bf16" in said
    assert document(capsys, "schedule", "list")["schedules"] == []
    printed(capsys, *on, "bf16")
    # A firing that makes an experiment of its own may choose.
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY, "--name", "new", "--precision", "fp32")


def test_a_long_name_is_fine_where_no_generations_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY, "--name", "n" * 64, "--each", "continue")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "schedule", "missing.yaml", *NIGHTLY, code=ExitCode.BAD_INPUT)


def test_the_cron_expression_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = printed(capsys, "schedule", "nightly.yaml", code=ExitCode.BAD_INPUT)
    assert "--cron" in said


def test_a_schedule_is_changed_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    _, said = printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    assert "unchanged" in said
    other = ("schedule", "nightly.yaml", "--cron", "0 3 * * *")
    _, said = printed(capsys, *other, code=ExitCode.CONFLICT)
    assert "--replace" in said
    _, said = printed(capsys, *other, "--replace")
    assert "changed" in said
    printed(capsys, *other, "--name", "another")
    assert len(document(capsys, "schedule", "list")["schedules"]) == 2


def test_pausing_and_resuming(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    printed(capsys, "schedule", "pause", "nightly")
    [paused] = document(capsys, "schedule", "list")["schedules"]
    assert (paused["paused"], paused["next"]) == (True, None)
    assert "paused" in printed(capsys, "schedule", "list")[0]
    _, said = printed(capsys, "schedule", "resume", "nightly")
    assert "fires next" in said
    assert document(capsys, "schedule", "resume", "nightly")["next"] is not None


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("pause",), ("resume",), ("remove",), ("fire",), ("run",), ("render", "--to", "slurm")],
)
def test_a_schedule_that_is_not_there(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    verb, *rest = arguments
    _, said = printed(capsys, "schedule", verb, "nightyl", *rest, code=ExitCode.NOT_FOUND)
    assert "did you mean 'nightly'" in said
    assert "shoal schedule list" in said


def test_fire_runs_it_and_show_has_the_generation(
    capsys: pytest.CaptureFixture[str], launcher: FakeLauncher
) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    fired = document(capsys, "schedule", "fire", "nightly")
    assert (fired["state"], fired["firing"]["experiment"]) == ("finished", "nightly.g1")
    printed(capsys, "schedule", "fire", "nightly")
    shown, _ = printed(capsys, "schedule", "show", "nightly")
    assert "nightly.g1" in shown
    assert "nightly.g2" in shown
    firings = document(capsys, "schedule", "show", "nightly")["firings"]
    assert [(one["generation"], one["state"]) for one in firings] == [(2, "finished"), (1, "finished")]


def test_status_of_a_schedule_is_its_family(
    capsys: pytest.CaptureFixture[str], launcher: FakeLauncher
) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    printed(capsys, "schedule", "fire", "nightly")
    shown, _ = printed(capsys, "status", "nightly")
    assert "nightly.g1" in shown
    assert "a new generation" in shown
    assert document(capsys, "status", "nightly")["schema"] == "shoal.schedule/1"
    assert document(capsys, "status", "nightly.g1")["schema"] == "shoal.status/1"
    _, said = printed(capsys, "status", "nothing", code=ExitCode.NOT_FOUND)
    assert "there is no experiment 'nothing'" in said


def test_fire_if_due_says_that_nothing_is(capsys: pytest.CaptureFixture[str], launcher: FakeLauncher) -> None:
    printed(capsys, "schedule", "nightly.yaml", "--cron", "0 0 29 2 *")
    _, said = printed(capsys, "schedule", "fire", "nightly", "--if-due")
    assert "nothing of nightly is due" in said
    assert document(capsys, "schedule", "fire", "nightly", "--if-due")["state"] is None
    assert launcher.children == []


@pytest.mark.parametrize(("stored", "code"), [("failed", ExitCode.FAILED), ("finished", ExitCode.OK)])
def test_the_exit_code_is_that_of_the_firing(
    capsys: pytest.CaptureFixture[str], launcher: FakeLauncher, stored: str, code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        launcher, "ends", lambda: FakeLauncher.ends(launcher, stored, int(stored == "failed"))
    )
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    printed(capsys, "schedule", "fire", "nightly", code=code)


def test_good_ends_are_those_that_were_wanted() -> None:
    assert {"failed", "stalled", "stopped", "queued"}.isdisjoint(GOOD)


def test_what_is_rendered_goes_to_stdout_or_into_a_folder(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    text, _ = printed(capsys, "schedule", "render", "nightly", "--to", "kubernetes")
    assert {one["kind"] for one in yaml.safe_load_all(text)} >= {"CronJob", "ConfigMap"}
    out = ("--out", str(folder / "out"))
    for target, count in (("systemd", 2), ("slurm", 2), ("raycronjob", 1)):
        _, said = printed(capsys, "schedule", "render", "nightly", "--to", target, *out)
        assert said.count("wrote") == count
    _, said = printed(capsys, "schedule", "render", "nightly", "--to", "systemd", *out)
    assert "wrote" not in said
    assert {path.name for path in (folder / "out").iterdir()} == {
        "shoal-nightly.service",
        "shoal-nightly.timer",
        "nightly.sbatch",
        "nightly.scrontab",
        "shoal-nightly.yaml",
    }


def test_a_file_of_somebody_elses_is_not_written_over(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    mine = folder / "nightly.sbatch"
    mine.write_text("#!/bin/sh\nmine\n", encoding="utf-8")
    printed(
        capsys, "schedule", "render", "nightly", "--to", "slurm", "--out", str(folder), code=ExitCode.CONFLICT
    )
    assert mine.read_text(encoding="utf-8") == "#!/bin/sh\nmine\n"


def test_what_can_not_be_rendered_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "schedule", "nightly.yaml", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin")
    _, said = printed(capsys, "schedule", "render", "nightly", "--to", "systemd", code=ExitCode.BAD_INPUT)
    assert "systemd fires at other times" in said
    _, said = printed(
        capsys, "schedule", "render", "nightly", "--to", "kubernetes", "--image", "a b", "--nodes", "0",
        code=ExitCode.BAD_INPUT,
    )  # fmt: skip
    assert "image" in said
    assert "nodes" in said


def test_names_of_others_paint_no_terminal(capsys: pytest.CaptureFixture[str], database: Database) -> None:
    """Somebody else may write into the database what our own door refuses."""
    printed(capsys, "schedule", "nightly.yaml", *NIGHTLY)
    schedules = Schedules(database)
    firing = fire(schedules, schedules.get("nightly"))
    claimed = schedules.claim(firing.schedule_id, "me")
    assert claimed is not None
    schedules.end(claimed, "failed", "\x1b[31mred\x1b[0m\u202e")
    shown, _ = printed(capsys, "schedule", "show", "nightly")
    assert "\x1b" not in shown
    assert "\u202e" not in shown


# What is started


def launcher_for(tmp_path: Path, **changes: object) -> processes.ShoalLauncher:
    return processes.ShoalLauncher(**{"database_url": None, "reports": tmp_path} | changes)  # type: ignore[arg-type]


def test_a_firing_runs_here_or_on_a_cluster(tmp_path: Path) -> None:
    options = {"workers": 2, "device": "cpu", "trainer": "plain", "precision": "bf16", "in_process": True}
    shared = ["--workers", "2", "--device", "cpu", "--trainer", "plain", "--precision", "bf16"]
    here = launcher_for(tmp_path)
    file = Path("x.yaml")
    run = here.command(file, "e", options)[3:]
    assert run == ["run", "x.yaml", "--report", f"{tmp_path}/e", "--in-process", *shared]
    assert here.report("e", options) == f"{tmp_path}/e/report.html"
    away = options | {"address": "http://head:8265", "in_process": False}
    submit = here.command(file, "e", away)[3:]
    assert submit == [
        "submit", "x.yaml", "--address", "http://head:8265", "--follow", "--retry", "3", *shared
    ]  # fmt: skip
    assert here.report("e", away) is None
    joined = launcher_for(tmp_path, ray_address="auto").command(file, "e", away)[3:]
    assert joined == ["run", "x.yaml", "--report", f"{tmp_path}/e", "--ray-address", "auto", *shared]


def test_a_schedule_that_says_no_precision_leaves_it_to_the_run(tmp_path: Path) -> None:
    assert "--precision" not in launcher_for(tmp_path).command(Path("x"), "e", {"device": "cpu"})


def test_a_firing_gets_the_database_but_not_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_WEBHOOK_SECRET", "a secret of enough length")
    monkeypatch.setenv("SHOAL_WEBHOOK_SECRET_FILE", "/x")
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert not {"SHOAL_WEBHOOK_SECRET", "SHOAL_WEBHOOK_SECRET_FILE", URL_VARIABLE} & set(
        launcher_for(tmp_path)._environment()
    )
    given = launcher_for(tmp_path, database_url="postgresql://u:p@h/d")
    assert given._environment()[URL_VARIABLE] == "postgresql://u:p@h/d"
    assert "u:p" not in " ".join(given.command(Path("x"), "e", {}))


def test_the_file_of_a_firing_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    class Child:
        def __init__(self, command: list[str], _environment: object, folder: Path) -> None:
            seen.append(folder)
            assert Path(command[4]).parent == folder

    monkeypatch.setattr(processes, "ProcessChild", Child)
    launcher_for(tmp_path).start({"experiment": "e"}, {})
    assert stat.S_IMODE(seen[0].stat().st_mode) == 0o700
    assert json.loads((seen[0] / "e.yaml").read_text()) == {"experiment": "e"}
