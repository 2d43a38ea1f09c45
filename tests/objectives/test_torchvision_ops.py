"""torchvision can be imported whether or not its compiled operators fit the torch that is installed.

Each in a process of its own: an operator's schema, once there, stays for the life of a process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest


def in_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_can_be_imported() -> None:
    code = "from objectives.torchvision_ops import torchvision_datasets as d; print(d().MNIST.__name__)"
    assert in_fresh_process(code) == "MNIST"


def test_asking_twice_declares_nothing_twice() -> None:
    code = "from objectives.torchvision_ops import declare_missing_ops as d; d(); print(d())"
    assert in_fresh_process(code) == "()"


@pytest.mark.parametrize(("own", "declared"), [("nms", "('qnms',)"), ("qnms", "('nms',)")])
def test_only_what_is_missing_is_declared(own: str, declared: str) -> None:
    """Where torchvision's own library brings an operator, ours must not stand in its way."""
    code = f"""
import torch
from objectives import torchvision_ops
own = torch.library.Library("torchvision", "FRAGMENT")
torchvision_ops._load_compiled_ops = lambda: own.define(torchvision_ops.SCHEMAS[{own!r}])
print(torchvision_ops.declare_missing_ops())
"""
    assert in_fresh_process(code) == declared


def test_nothing_is_declared_beside_operators_that_load() -> None:
    code = """
import torch
from objectives import torchvision_ops
from objectives.torchvision_ops import SCHEMAS, _load_compiled_ops, declare_missing_ops
_load_compiled_ops()
loaded = [name for name in SCHEMAS if hasattr(torch.ops.torchvision, name)]
print(set(declare_missing_ops()) == set(SCHEMAS) - set(loaded))
"""
    assert in_fresh_process(code) == "True"
