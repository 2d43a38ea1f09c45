"""What is recorded of code and machine: our own revision and no other repository's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from search import environment as module
from search.environment import cpu_model, environment, gpu_names, revision


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "commit.gpgsign=false",
            *arguments,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with our packages in it; returns the folder of the package `search`."""
    root = tmp_path / "checkout"
    package = root / "search"
    package.mkdir(parents=True)
    (root / "objectives").mkdir()
    (package / "code.py").write_text("one\n", encoding="utf-8")
    (root / "README.md").write_text("one\n", encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return package


def test_the_revision_is_the_commit(checkout: Path) -> None:
    found = revision(checkout)
    assert found is not None
    assert found == git(checkout, "rev-parse", "HEAD")
    assert len(found) == 40


def test_changed_code_is_marked_and_nothing_else(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout.parent / "README.md").write_text("two\n", encoding="utf-8")
    (checkout.parent / "my-search.yaml").write_text("mine\n", encoding="utf-8")
    assert revision(checkout) == commit
    (checkout.parent / "objectives" / "loss.py").write_text("new\n", encoding="utf-8")
    assert revision(checkout) == f"{commit}+changes"
    (checkout.parent / "objectives" / "loss.py").unlink()
    (checkout / "code.py").write_text("two\n", encoding="utf-8")
    assert revision(checkout) == f"{commit}+changes"


def test_a_package_that_only_lies_in_a_checkout_has_no_revision(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "site-packages" / "search"
    installed.mkdir(parents=True)
    assert revision(installed) is None


def test_no_checkout_no_commit_no_git(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert revision(tmp_path / "search") is None
    empty = tmp_path / "empty"
    (empty / "search").mkdir(parents=True)
    git(empty, "init", "--quiet")
    assert revision(empty / "search") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision(checkout) is None


def test_the_caller_s_git_variables_do_not_lead_elsewhere(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "--message", "other")
    expected = revision(checkout)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(checkout.parent))
    assert revision(checkout) == expected
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert expected == git(checkout, "rev-parse", "HEAD")


def test_a_slow_git_counts_as_missing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_arguments: object, **_options: object) -> None:
        raise subprocess.TimeoutExpired("git", module.GIT_SECONDS)

    monkeypatch.setattr(module.subprocess, "run", slow)
    assert revision(checkout) is None


def test_cpu_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel\t\t: 17\nmodel name\t: A CPU @ 2: fast\n" * 2, encoding="utf-8")
    assert cpu_model(info) == "A CPU @ 2: fast"
    monkeypatch.setattr(module.platform, "processor", lambda: "arm")
    info.write_text("processor\t: 0\nBogoMIPS\t: 50\n", encoding="utf-8")
    assert cpu_model(info) == "arm"
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    assert cpu_model(tmp_path / "none") is None


def test_gpu_names(tmp_path: Path) -> None:
    assert gpu_names(tmp_path) == []
    for address, model in (("0000:b3:00.0", "NVIDIA B"), ("0000:0a:00.0", "NVIDIA A")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 5\nGPU UUID: \t GPU-1\n", encoding="utf-8"
        )
    assert gpu_names(tmp_path) == ["NVIDIA A", "NVIDIA B"]


def test_the_environment_is_plain_values() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) == {"shoal", "torch", "optuna", "ray", "numpy"}
    assert found["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert found["revision"] == revision()


def test_it_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from search.environment import environment; environment(); print('torch' in sys.modules)"
    )
    root = Path(module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
