"""Kernels in Triton's language are compiled for GPUs that aren't there, and never started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class Compiler:
    """Stands for a GPU of some kind."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def compiling(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Callable[[int], list[Any]]:
    """Kernels of a module are compiled instead of started: for a GPU of such a capability, what is called."""
    from triton.runtime import driver

    assert not module.INTERPRETED
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    calls: list[Any] = []

    class Only:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def start(*arguments: Any, **fixed: Any) -> None:
                calls.append(self._kernel.run(*arguments, grid=grid, warmup=True, **fixed))

            return start

    kernels = {
        name: one
        for name, one in vars(module).items()
        if hasattr(one, "arg_names") and not name.startswith("_")
    }
    assert kernels
    for name, one in kernels.items():
        monkeypatch.setattr(module, name, Only(one))

    def on(capability: int) -> list[Any]:
        monkeypatch.setattr(driver, "_active", Compiler(capability))
        calls.clear()
        return calls

    return on
