"""Triton's kernels can be switched off."""

from __future__ import annotations

import pytest

from objectives.fused import triton_there
from objectives.fused.triton_there import VARIABLE, has_triton


@pytest.mark.parametrize(
    ("said", "installed", "used"),
    [(None, True, True), ("on", True, True), ("off", True, False), (None, False, False)],
)
def test_kernels_are_used_where_triton_is_and_nobody_switched_them_off(
    said: str | None, installed: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        triton_there, "find_spec", lambda name: object() if installed and name == "triton" else None
    )
    monkeypatch.delenv(VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(VARIABLE, said)
    assert has_triton() == used
