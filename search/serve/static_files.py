"""The style sheet, the script and the icon: served as they are, and nothing else is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

STATIC: Mapping[str, str] = {
    "serve.css": "text/css; charset=utf-8",
    "serve.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""The files that are served as they are, and as what: no other name leads to a file."""


def static_address(name: str) -> str:
    """The address of one of our files, which changes with its content."""
    digest = hashlib.sha256(static_files()[name]).hexdigest()[:16]
    return f"/static/{name}?v={digest}"


@cache
def static_files() -> Mapping[str, bytes]:
    """The files of `STATIC`, read once."""
    folder = Path(__file__).parent / "static"
    return {name: (folder / name).read_bytes() for name in STATIC}
