"""A trial's state at the end of an epoch, in a file that is whole or not there.

What can't be used (absent, damaged, of another trial) is not an error: the trial starts anew, and its curve
is the same, for it depends on its seed alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.base import EpochReport
from objectives.checkpoint_files import fingerprint

__all__ = ["Checkpoint", "fingerprint", "load", "on_host", "save", "size_of"]

logger = logging.getLogger(__name__)

DIGEST_BYTES = hashlib.sha256().digest_size
"""Files end with the SHA-256 of what comes before: `torch.load` takes a file with flipped bits for whole."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds."""

    fingerprint: str
    """Of the trial and its data: see `objectives.checkpoint_files.fingerprint`."""
    report: EpochReport
    """Of the epoch that the trial is at the end of."""
    state: Mapping[str, Any]
    """Tensors and plain values, as the engine that wrote them reads them."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, replacing one that is there only when the new one is safely on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "fingerprint": checkpoint.fingerprint,
        "report": asdict(checkpoint.report),
        "state": dict(checkpoint.state),
    }
    body = io.BytesIO()
    torch.save(content, body)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body.getbuffer())
            file.write(hashlib.sha256(body.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path, expected: str) -> Checkpoint | None:
    """The checkpoint at `path`, its tensors on the CPU, if its fingerprint is the expected one.

    None, with a warning in the log, for every other file and for none.
    """
    try:
        body = _body(path.read_bytes())
        # `weights_only`: nothing in the file is executed, wherever it may come from.
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(content["fingerprint"], EpochReport(**content["report"]), content["state"])
    except Exception as error:  # noqa: BLE001 (damage shows as almost any kind of exception)
        logger.warning("checkpoint %s can't be read, the trial starts anew: %s", path, error)
        return None
    if checkpoint.fingerprint != expected:
        logger.warning("checkpoint %s is of another trial, this one starts anew", path)
        return None
    return checkpoint


def _body(written: bytes) -> bytes:
    """The bytes of a file before its digest; ValueError if that is the digest of others."""
    body, digest = written[:-DIGEST_BYTES], written[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("it is damaged, its SHA-256 is not the one it was written with")
    return body


def on_host(state: Any) -> Any:
    """A copy of a state with its tensors in the host's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: on_host(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(on_host, state))
    return state


def size_of(state: Any) -> int:
    """Bytes of the tensors of a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(size_of, state.values()))
    return sum(map(size_of, state)) if isinstance(state, list | tuple) else 0
