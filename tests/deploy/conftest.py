"""What `kubectl kustomize` makes of each overlay, once for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, OVERLAYS, Document, render


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `deploy/` as a user has it who made the secrets of the overlay `dev`."""
    copy = tmp_path_factory.mktemp("deploy") / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    secrets = copy / "kustomize" / "overlays" / "dev" / "secrets"
    environment = {**os.environ, "SECRETS": str(secrets), "DATABASE_HOST": "shoal-postgres"}
    subprocess.run([copy / "secrets.sh"], env=environment, check=True, capture_output=True, timeout=30)
    return copy


@pytest.fixture(scope="session")
def rendered(tree: Path) -> dict[str, list[Document]]:
    """The objects of each overlay."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return {name: render(tree / "kustomize" / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Document]]) -> list[Document]:
    """The objects of one overlay."""
    return rendered[request.param]
