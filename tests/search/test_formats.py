"""Numbers and names as people read them."""

from __future__ import annotations

import pytest

from search.formats import format_backends


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ({"0": "grouped", "3": "hybrid", "6": "grouped"}, "0, 6 grouped; 3 hybrid"),
        ({"stem": "im2col"}, "stem im2col"),
        ({}, ""),
    ],
)
def test_layers_are_named_by_backend(backends: dict[str, str], expected: str) -> None:
    assert format_backends(backends) == expected
