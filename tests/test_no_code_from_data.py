"""No process of ours runs what somebody stored: no pickle, no `eval`, no weights that are a program."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna_dashboard import wsgi
from sqlalchemy import text

from objectives.checkpoints import load
from search.cli import run_command
from storage.database import Database
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.shoal_command import ONE_METHOD, tiny

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for package in ("search", "objectives", "storage") for path in (ROOT / package).rglob("*.py")]

FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load", "eval", "exec", "compile", "os.system", "os.popen", "optuna.samplers.CmaEsSampler",
}  # fmt: skip

MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


class Payload:
    """What runs when it is unpickled: a file appears."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.told),)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """What the payload makes; that it works is seen first."""
    path = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.rmdir()
    return path


def name_of(node: ast.expr) -> str:
    """`torch.load` of a call's function, as far as it is a chain of names."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_no_source_calls_what_runs_data() -> None:
    assert len(SOURCES) > 150
    assert [place for place, call in calls() if name_of(call.func) in FORBIDDEN] == []


def test_no_source_imports_what_runs_data() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            found += [str(path) for name in names if name.split(".")[0] in MODULES]
            if isinstance(node, ast.ImportFrom):
                found += [str(path) for alias in node.names if "CmaEs" in alias.name]
    assert found == []


def test_weights_are_read_as_weights_alone() -> None:
    loads = [(place, call) for place, call in calls() if name_of(call.func) in {"torch.load", "np.load"}]
    assert loads
    for place, call in loads:
        said = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if name_of(call.func) == "torch.load":
            assert said.get("weights_only") is True, place
        else:
            assert not said.get("allow_pickle"), place


def test_a_checkpoint_that_is_a_program_is_not_run(tmp_path: Path, told: Path) -> None:
    """Whole as far as its digest goes: whoever may write the folder can compute one."""
    body = io.BytesIO()
    torch.save({"fingerprint": "ours", "report": {}, "state": Payload(told)}, body)
    (tmp_path / "1-1.pt").write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
    assert load(tmp_path / "1-1.pt", "ours") is None
    assert not told.exists()
    torch.load(io.BytesIO(body.getvalue()), weights_only=False)
    assert told.exists(), "it would have run"


@pytest.mark.slow
def test_a_program_planted_in_the_database_is_not_run(
    database: Database, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Optuna's CMA-ES sampler keeps its state, in a study of ours and in a stranger's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny("tiny", *ONE_METHOD))
    url = ["--database", database.url]
    assert run_command(["run", "tiny.yaml", "--in-process", *url]) == 0
    storage = open_optuna_storage(database.url)
    foreign = optuna.create_study(
        storage=storage, study_name="foreign", sampler=optuna.samplers.RandomSampler()
    )
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    planted = pickle.dumps(Payload(told)).hex()
    with database.begin() as connection:
        for key in ("cma:optimizer", "cma:optimizer:0", "cma:restarts_popsize", "popsize", "evil"):
            connection.execute(
                text("INSERT INTO trial_system_attributes (trial_id, key, value_json) "
                     "SELECT trial_id, :key, to_json(CAST(:value AS text)) FROM trials"),
                {"key": key, "value": planted},
            )  # fmt: skip
            connection.execute(
                text("INSERT INTO study_system_attributes (study_id, key, value_json) "
                     "SELECT study_id, :key, to_json(CAST(:value AS text)) FROM studies"),
                {"key": key, "value": planted},
            )  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(tiny("tiny", *ONE_METHOD, ("trials: 4", "trials: 6")))
    for command in (
        ("run", "tiny.yaml", "--in-process"),
        ("resume", "tiny", "--in-process"),
        ("status", "tiny"),
        ("trials", "tiny"),
        ("best", "tiny"),
        ("report", "tiny"),
        ("export", "tiny"),
        ("db", "check"),
        ("db", "backup", "--out", "b"),
    ):
        assert run_command([*command, *url]) == 0, command
    shown = wsgi(storage)
    for study in storage.get_all_studies():
        ask = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"/api/studies/{study._study_id}",
            "wsgi.input": io.BytesIO(),
        }
        assert b"trials" in b"".join(shown(ask | {"wsgi.errors": io.StringIO()}, lambda *_: None))
        opened = optuna.load_study(study_name=study.study_name, storage=storage)
        assert len(opened.trials) >= 2
    close_optuna_storage(storage)
    assert Experiments(database).get("tiny").state == "finished"
    assert not told.exists()
