"""`shoal metrics` as a command, and a whole run whose stderr is read by a program."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from search.cli import run_command
from search.observe.sinks import Origin
from storage.database import URL_VARIABLE, Database
from tests.contracts.processes import PATIENCE
from tests.contracts.stored_experiment import store_experiment

SHOAL = [sys.executable, "-m", "search.cli"]

ANALYTIC = """
experiment: watched
objective: {function: "search.examples.analytic:branin", direction: minimize, worst: 400}
allow_imports: [search.examples.analytic]
metric: value
space:
  x1: {low: -5.0, high: 10.0}
  x2: {low: 0.0, high: 15.0}
methods: {random: {}}
replicates: 1
budget: {trials: 4}
comparison: {retrain: {seeds: 1}}
"""


def test_metrics_once(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["metrics", "--once"]) == 0
    said = capsys.readouterr().out
    assert "# TYPE shoal_trials gauge" in said
    assert 'shoal_experiment_running{experiment="stored"} 0.0' in said
    assert stored.url not in said


def test_metrics_once_without_a_database_says_so_as_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    """As a scrape would: the exporter outlives the database."""
    url = "postgresql://nobody:hunter2@127.0.0.1:1/none"
    assert run_command(["metrics", "--once", "--database", url]) == 0
    said = capsys.readouterr()
    assert "shoal_database_up 0.0" in said.out
    assert "hunter2" not in said.out + said.err


def test_a_port_that_is_taken(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert run_command(["metrics", "--port", str(port)]) == 1
    assert f"can't serve metrics at 127.0.0.1, port {port}" in capsys.readouterr().err


def environment(database: Database, **more: str) -> dict[str, str]:
    return {**os.environ, URL_VARIABLE: database.url, "SHOAL_LOG_FORMAT": "json", **more}


@pytest.mark.slow
def test_the_exporter_serves_until_it_is_told_to_go(database: Database) -> None:
    store_experiment(database)
    process = subprocess.Popen(
        [*SHOAL, "metrics", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment(database)
    )
    try:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        (address,) = re.findall(r"http://\S+", line["message"])
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            assert "shoal_database_up 1.0" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_whole_run_as_lines_of_json_and_in_a_sink(database: Database, tmp_path: Path) -> None:
    """Every line on stderr is JSON, each trial's life is told once, and the password shows nowhere."""
    from search.observe.feeding import origin_of
    from search.observe.sink_tensorboard import TensorboardSink
    from storage.experiments import Experiments

    (tmp_path / "watched.yaml").write_text(ANALYTIC, encoding="utf-8")
    sink = f"tensorboard:{tmp_path / 'tb'}"
    ran = subprocess.run(
        [*SHOAL, "run", "watched.yaml", "--in-process", "--sink", sink, "--metrics-port", "0"],
        cwd=tmp_path,
        env=environment(database),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in ran.stderr.splitlines()]
    lives = [line for line in lines if line["logger"] == "search.observe.watching"]
    told = [(line["study"], line["trial"], line.get("state", "claimed")) for line in lives]
    ends = [
        (f"watched/random/0{part}", n) for part, count in (("", 4), ("/retrained", 1)) for n in range(count)
    ]
    assert sorted(told) == sorted((*end, state) for end in ends for state in ("claimed", "complete"))
    assert {line["experiment"] for line in lives} == {"watched"}
    assert all(line["worker"] and line["attempt"] == 1 for line in lives)
    assert any("metrics are served at" in line["message"] for line in lines)
    password = make_url(database.url).password
    assert password
    assert password not in ran.stderr + ran.stdout
    origin = origin_of(Experiments(database).get("watched"))
    assert isinstance(origin, Origin)
    assert len(TensorboardSink(str(tmp_path / "tb"), origin).known()) == len(ends)
