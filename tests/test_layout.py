"""The house rules that a machine can check: where packages lie, what the README says, why we depend."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from objectives.registry import names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REGISTRIES = ("loss", "regulariser", "optimizer", "schedule", "model", "augment", "data", "metric")


@pytest.mark.parametrize("package", ["search", "objectives", "storage"])
def test_packages_resolve_to_this_checkout(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / package / "__init__.py"


def test_top_level_is_what_was_agreed() -> None:
    """Tool files may lie beside these; no other folder of ours may."""
    folders = {
        path.parent.parts[len(ROOT.parts)] for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts
    }
    assert folders <= {"search", "objectives", "storage", "deploy", "tests", "build", "dist"}


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    wanted = [
        *project["dependencies"],
        *(d for group in project["optional-dependencies"].values() for d in group),
    ]
    for dependency in wanted:
        line = next(line for line in text.splitlines() if f'"{dependency}"' in line)
        assert re.search(r"#\s\S.{10,}", line), f"{dependency} has no reason beside it"


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {normal(line.split("==")[0]) for line in lines if "==" in line}
    missing = {normal(re.split(r"[<>=!;\[ ]", dependency)[0]) for dependency in wanted} - locked
    assert not missing


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("group", REGISTRIES)
def test_readme_names_every_entry_of_a_registry(group: str) -> None:
    missing = [name for name in names(group) if f"`{name}`" not in README]
    assert not missing


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_anchors_lead_to_a_heading() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert [anchor for anchor in re.findall(r"\]\(#([^)]+)\)", README) if anchor not in headings] == []
