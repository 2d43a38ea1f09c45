"""The operator's list: what may be imported, asked where it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from objectives.base import FunctionTask, TrialConfig, TrialError, TrialFailure, TrialStart
from objectives.imports import ALLOW_VARIABLE, import_remedy, may_import, resolve_import
from objectives.plugin import FunctionEngine
from objectives.registry import problem_of_name

ALLOWED = ["own_secret"]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file where it is imported; the file's path."""
    told = tmp_path / "it ran"
    (tmp_path / "own_secret.py").write_text(
        f"from pathlib import Path\nPath({str(told)!r}).touch()\n"
        "def loss(logits, labels):\n    return logits.sum(-1)\ndef f(config, *, seed):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_secret", raising=False)
    monkeypatch.delenv(ALLOW_VARIABLE)
    return told


@pytest.mark.parametrize(
    ("said", "module", "expected"),
    [
        (None, "search.examples", True),
        (None, "search.examples.analytic", True),
        (None, "search", False),
        (None, "search.examples_of_others", False),
        (None, "os", False),
        ("", "search.examples.analytic", True),
        (" , ", "os", False),
        ("mine", "mine", True),
        ("mine", "mine.models.small", True),
        ("mine", "minefield", False),
        ("mine", "search.examples.analytic", False),
        ("mine.models", "mine", False),
        ("mine, yours", "yours.losses", True),
        ("*", "os", False),
        (".", "os", False),
    ],
)
def test_the_list_names_modules_and_what_is_below_them(
    monkeypatch: pytest.MonkeyPatch, said: str | None, module: str, expected: bool
) -> None:
    monkeypatch.delenv(ALLOW_VARIABLE)
    if said is not None:
        monkeypatch.setenv(ALLOW_VARIABLE, said)
    assert may_import(module) is expected


def test_both_must_agree_before_anything_runs(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for listed, said in ((ALLOWED, None), (ALLOWED, "own"), ([], "own_secret"), ([], None)):
        if said is not None:
            monkeypatch.setenv(ALLOW_VARIABLE, said)
        else:
            monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
        with pytest.raises(TrialError, match="may not be imported"):
            resolve_import("own_secret:loss", listed)
    assert not trap.exists()
    monkeypatch.setenv(ALLOW_VARIABLE, "own_secret")
    assert callable(resolve_import("own_secret:loss", ALLOWED))
    assert trap.exists()


def test_the_remedy_names_who_must_do_what(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_remedy("own_secret:loss", []) == "list its module in allow_imports"
    problem = problem_of_name("loss", "own_secret:loss", ALLOWED)
    assert problem is not None
    assert ALLOW_VARIABLE in problem.message
    assert problem.remedy == f"who runs shoal, and each of its workers, adds own_secret to {ALLOW_VARIABLE}"
    assert not trap.exists()
    monkeypatch.setenv(ALLOW_VARIABLE, "own_secret")
    assert import_remedy("own_secret:nothing", ALLOWED) == "correct the module or its name"
    monkeypatch.setenv(ALLOW_VARIABLE, "nowhere_at_all")
    assert "folder that it is in on PYTHONPATH" in import_remedy("nowhere_at_all:f", ["nowhere_at_all"])


def test_a_worker_asks_its_own_list(trap: Path) -> None:
    """An experiment that another machine let in: the worker's engine refuses it all the same."""
    task = FunctionTask(
        function="own_secret:f",
        metric="loss",
        direction="minimize",
        worst=9.0,
        allow_imports=("own_secret",),
    )
    engine = FunctionEngine(task)
    engine.admit(TrialStart(trial_id=1, config=TrialConfig(epochs=1), seed=1, split_seed=1))
    (failure,) = engine.advance()
    assert isinstance(failure, TrialFailure)
    assert ALLOW_VARIABLE in failure.reason
    assert not trap.exists()
