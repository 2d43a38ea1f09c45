"""An experiment from its file to its report, by the commands that a user types."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from typing import Any

import pytest

from tests.contracts.held_training import IN_FILE
from tests.contracts.hold import Hold
from tests.contracts.processes import ROOT
from tests.contracts.shoal_command import ONE_METHOD, Shoal, tiny

pytestmark = pytest.mark.slow


def data(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """A command's JSON; stdout holds nothing else."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_from_file_to_score(shoal: Shoal) -> None:
    shoal("init", "mine.yaml")
    assert "trials" in shoal("plan", "mine.yaml", "--no-measure").stdout
    file = shoal.write("tiny.yaml", tiny("tiny"))
    plan = data(shoal("plan", file, "--no-measure", "--json"))
    assert (plan["studies"], plan["grid_points"], plan["trials"]) == (6, 4, 24)

    ran = shoal("run", file, "--in-process")
    assert "Test accuracy of retrained winners" in ran.stdout
    assert ran.stdout.rstrip().endswith("reports/tiny/report.html")
    assert "24/24 trials" in ran.stderr
    assert "winners retrained 12/12" in ran.stderr
    assert "Too few replicates" in ran.stderr
    assert (shoal.folder / "reports/tiny/report.html").stat().st_size > 1_000_000

    status = data(shoal("status", "tiny", "--json"))
    assert status["state"] == "finished"
    assert [(m["method"], m["finished"]) for m in status["methods"]] == [
        ("grid", 8),
        ("random", 8),
        ("tpe", 8),
    ]

    trials = data(shoal("trials", "tiny", "--json"))["trials"]
    assert len(trials) == 24
    assert {trial["state"] for trial in trials} == {"complete", "pruned"}
    assert all(trial["attempts"] == 1 for trial in trials)
    for replicate in (0, 1):
        grid = [
            json.dumps(t["params"]) for t in trials if (t["method"], t["replicate"]) == ("grid", replicate)
        ]
        assert len(set(grid)) == len(grid) == 4

    best = data(shoal("best", "tiny", "--json"))["methods"]
    complete = [t["value"] for t in trials if t["method"] == "tpe" and t["state"] == "complete"]
    assert next(row for row in best if row["method"] == "tpe")["value"] == max(complete)

    report = data(shoal("report", "tiny", "--json"))
    assert {m["method"]: m["trials"]["total"] for m in report["methods"]} == {
        "grid": 8,
        "random": 8,
        "tpe": 8,
    }
    spent = sum(trial["epochs"] for trial in trials)
    assert sum(method["epochs"] for method in report["methods"]) == spent
    assert [reading["purpose"] for reading in report["test_readings"]] == ["retraining"] * 12
    assert status["retraining"]["complete"] == status["retraining"]["planned"] == 12

    rows = list(csv.DictReader(io.StringIO(shoal("export", "tiny", "--what", "epochs").stdout)))
    assert len(rows) == spent

    score = data(shoal("score", "tiny", "--json"))
    assert 0 < score["test"]["accuracy"] <= 1
    assert score["seed"] not in {0, 3}
    *declared, by_hand = data(shoal("report", "tiny", "--json"))["test_readings"]
    assert declared == report["test_readings"]
    assert by_hand["purpose"] == "score"
    assert by_hand["metrics"]["accuracy"] == score["test"]["accuracy"]

    again = shoal("run", file, "--in-process", "--json")
    assert data(again)["resumed"] is True
    assert data(shoal("trials", "tiny", "--json"))["trials"] == trials


def test_another_space_under_the_same_name_is_a_conflict(shoal: Shoal) -> None:
    one = tiny("taken", *ONE_METHOD)
    shoal("run", shoal.write("a.yaml", one), "--in-process")
    other = shoal.write("b.yaml", one.replace("high: 0.3", "high: 0.2"))
    refused = shoal("run", other, "--in-process", code=4)
    assert "space.learning_rate.high" in refused.stderr
    assert refused.stdout == ""
    assert data(shoal("run", other, "--in-process", "--json", code=4))["error"]["kind"] == "conflict"


def test_ctrl_c_stops_at_an_epoch_and_resume_goes_on(shoal: Shoal) -> None:
    changes = (("epochs: 3", "epochs: 20"), ("trials: 4", "trials: 2"))
    unpruned = ("name: asha, min_epochs: 1, eta: 2", "name: none")
    text = tiny("long", *ONE_METHOD, *changes, unpruned, IN_FILE)
    file = shoal.write("long.yaml", text)
    hold = Hold(shoal.folder / "hold")
    hold.at(1)
    shoal = Shoal(shoal.folder, {**shoal.environment, **hold.environment(), "PYTHONPATH": str(ROOT)})
    with shoal.start("run", file, "--in-process", "--trainer", "plain") as run:
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if line.startswith("started long"):
                run.send_signal(signal.SIGINT)
                hold.creep(lambda: run.poll() is not None)
        assert run.wait() == 130, "".join(said)
    assert f"next: shoal run {file}" in "".join(said)
    stopped = data(shoal("status", "long", "--json"))
    assert stopped["state"] == "stopped"
    before = data(shoal("trials", "long", "--json"))["trials"]
    assert not [trial for trial in before if trial["state"] == "running"]
    assert sum(trial["epochs"] for trial in before) < 40

    hold.release()
    done = data(shoal("resume", "long", "--in-process", "--trainer", "plain", "--json"))
    assert (done["state"], done["resumed"]) == ("finished", True)
    after = data(shoal("trials", "long", "--json"))["trials"]
    assert [(trial["state"], trial["epochs"]) for trial in after] == [("complete", 20)] * 2


def test_output_is_plain_and_separate_in_a_pipe(shoal: Shoal) -> None:
    listed = shoal("status")
    assert listed.stdout == ""
    assert "no experiments yet" in listed.stderr
    assert "\x1b" not in listed.stderr


def test_an_unreachable_database_ends_with_5(shoal: Shoal) -> None:
    file = shoal.write("tiny.yaml", tiny("tiny"))
    url = "postgresql://me:sesame@127.0.0.1:1/none"
    for arguments in (["run", file, "--in-process"], ["status"], ["resume", "tiny"]):
        done = shoal(*arguments, code=5, SHOAL_DATABASE_URL=url)
        assert "sesame" not in done.stdout + done.stderr
        assert "***" in done.stderr
        assert "next: " in done.stderr


def test_a_report_that_cannot_be_written_does_not_hide_what_was_found(shoal: Shoal) -> None:
    file = shoal.write("file.yaml", tiny("search", *ONE_METHOD))
    shoal.write("reports", "a file where the folder should be")
    done = shoal("run", file, "--in-process", code=1)
    assert "Test accuracy of retrained winners" in done.stdout
    assert "finished in" in done.stderr
    assert "the report can't be written: reports" in done.stderr
    assert "next: shoal report search --out FOLDER" in done.stderr
    assert json.loads(shoal("run", file, "--in-process", "--json", code=1).stdout)["files"] is None
