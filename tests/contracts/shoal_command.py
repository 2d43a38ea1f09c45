"""The command in a process of its own, as a user starts it, or in the test's; and a small file for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command

COMMAND = Path(sys.executable).parent / "shoal"
SECONDS = 400.0
"""For a command, which may be a whole run on a busy machine."""

TINY = """
experiment: {name}
seed: 3
data: {{name: digits, limit: 300}}
model: {{name: cnn, depth: 1, width: 4, dense: 8}}
fixed: {{epochs: 3}}
space:
  learning_rate: {{low: 1e-3, high: 0.3, log: true, grid: [1e-2, 1e-1]}}
  optimizer: {{values: [momentum, adam], grid: [momentum, adam]}}
methods: {{grid: {{}}, random: {{}}, tpe: {{}}}}
replicates: 2
budget: {{trials: 4}}
pruner: {{name: asha, min_epochs: 1, eta: 2}}
comparison: {{retrain: {{seeds: 2}}}}
"""
"""A file of 24 trials and 12 retrainings that run in a few seconds, once it has a name."""

ONE_METHOD = (("grid: {}, random: {}, tpe: {}", "random: {}"), ("replicates: 2", "replicates: 1"))
"""Replacements that leave one study."""


def tiny(name: str, *replacements: tuple[str, str]) -> str:
    """`TINY` with a name and other changes; each must find something to replace."""
    text = TINY.format(name=name)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Shoal:
    """Starts `shoal` in a folder with an environment."""

    folder: Path
    environment: Mapping[str, str]

    def __call__(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must be this exit code."""
        try:
            done = subprocess.run(
                [COMMAND, *arguments],
                cwd=self.folder,
                env={**self.environment, **environment},
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            said = [(words or b"").decode("utf-8", "replace") for words in (late.stdout, late.stderr)]
            raise AssertionError(f"shoal {' '.join(arguments)} did not end in time; it said {said}") from None
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command whose stderr is read as it comes; its stdout goes nowhere."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=dict(self.environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, name: str, text: str) -> str:
        """Write a file into the folder and return its name."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return name


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command that ends with that code."""
    assert run_command(arguments) == code
    return tuple(capsys.readouterr())  # type: ignore[return-value]


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The JSON document of a command; stdout holds nothing else."""
    out, _ = printed(capsys, *arguments, "--json", code=code)
    found: dict[str, Any] = json.loads(out)
    return found
