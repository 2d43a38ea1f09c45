"""Files of trials that have begun: one folder per trial, two files at most, each with a manifest.

What is in a file is its engine's business (`objectives.checkpoints`); here it is whole or not used.
A file is written aside, brought to disk, renamed; then its manifest, which holds its SHA-256, what
it is of, and the epoch and attempt that wrote it. A file without a manifest that fits is no
checkpoint, so a crash at any moment leaves the one before. Names are made of numbers and of words
that are checked, and no part of a path below the root may be a symbolic link.

Imports no torch: whoever hands out trials looks for their files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objectives.base import Choice, DataSpec, TrialStart

logger = logging.getLogger(__name__)

FORMAT = 3
"""Of what engines write; changes when older files can no longer be read, and when the same seed gives other
random numbers: a trial never goes on with others than it began with."""
KEEP = 2
"""Files of a trial that are kept: the newest, and the one before it in case that one is damaged."""
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE = re.compile(r"(\d{1,9})-(\d{1,9})\.pt")
"""Epoch and attempt."""
CHUNK_BYTES = 2**20


class CheckpointError(Exception):
    """A name or a path that checkpoints don't go to; nothing was read, written or removed there."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a file beside it."""

    sha256: str
    size: int
    """Bytes."""
    fingerprint: str
    """Of the trial and its data: see `fingerprint`."""
    epoch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Place:
    """A file's path, and what its name says of it."""

    epoch: int
    attempt: int
    path: Path

    @property
    def manifest(self) -> Path:
        """The path of its manifest."""
        return self.path.with_suffix(".json")


def fingerprint(start: TrialStart, data: DataSpec | None) -> str:
    """A hash of all that decides a trial's curve: config, seeds, and which images (not where they lie).

    `data` is None for trials that see no images.
    """
    config = {name: _plain(getattr(start.config, name)) for name in start.config.__dataclass_fields__}
    images = data and (data.name, data.validation, data.image_size, data.limit)
    text = json.dumps([FORMAT, config, start.seed, start.split_seed, images], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def epoch_of(path: Path) -> int:
    """The epoch at whose end a file was saved that `TrialFolder` gave."""
    found = FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


class TrialFolder:
    """The checkpoints of one trial. Threads and processes may use one folder at a time.

    `parts` are the names of the folders below `root`. Raises `CheckpointError` for a name that isn't
    1 to 128 letters, digits, `.`, `_` or `-`, beginning with a letter or digit.
    """

    def __init__(self, root: Path, *parts: str) -> None:
        for part in parts:
            if not WORD.fullmatch(part):
                raise CheckpointError(f"{part!r} can't be the name of a folder of checkpoints")
        self._root = root
        self._parts = parts
        self.path = root.joinpath(*parts)

    def save(self, write: Callable[[Path], None], *, fingerprint: str, epoch: int, attempt: int) -> Path:
        """Have `write` make a file at the path that it is given, and keep it as this epoch's.

        Older files go once the new one is safely on disk. Raises `OSError` where it can't be
        written (a full disk), with the older ones still there, and what `write` raises.
        """
        self._make()
        place = self._place(epoch, attempt)
        aside = place.path.with_name(f".{place.path.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)  # what lies there, a link perhaps, is not written through
        try:
            write(aside)
            digest, size = _digest(aside)
            manifest = Manifest(digest, size, fingerprint, epoch, attempt)
            aside.replace(place.path)
            _to_disk(self.path)
            _write_manifest(place.manifest, manifest)
        finally:
            aside.unlink(missing_ok=True)
        _to_disk(self.path)
        self._drop_old()
        return place.path

    def newest(self, fingerprint: str, *, at_most: int | None) -> Path | None:
        """The file of the latest epoch that is whole and of this trial, none later than `at_most`.

        That is the last epoch whose report is stored: a later file would leave a hole in the
        curve. Damaged and foreign files are passed over, with a warning in the log.
        """
        if at_most is None:
            return None
        for place in self._places():
            if place.epoch <= at_most and _is_whole(place, fingerprint):
                return place.path
        return None

    def path_of(self, epoch: int, attempt: int) -> Path:
        """Where `save` puts the file of an epoch; whether it is there is not looked at."""
        return self._place(epoch, attempt).path

    def remove(self) -> None:
        """Remove everything: the trial has ended."""
        with suppress(CheckpointError):
            if self._exists():
                shutil.rmtree(self.path, ignore_errors=True)

    def _place(self, epoch: int, attempt: int) -> Place:
        return Place(epoch, attempt, self.path / f"{int(epoch)}-{int(attempt)}.pt")

    def _places(self) -> list[Place]:
        """The files by their names, the latest epoch first."""
        try:
            if not self._exists():
                return []
            names = [path.name for path in self.path.iterdir()]
        except (OSError, CheckpointError) as error:
            logger.warning("checkpoints in %s can't be used: %s", self.path, error)
            return []
        found = [match for name in names if (match := FILE.fullmatch(name))]
        places = [Place(int(m[1]), int(m[2]), self.path / m[0]) for m in found]
        return sorted(places, key=lambda place: (place.epoch, place.attempt), reverse=True)

    def _drop_old(self) -> None:
        # By attempt first: one that began anew has few epochs, and a worker that lost its trial is late.
        places = sorted(self._places(), key=lambda place: (place.attempt, place.epoch), reverse=True)
        for place in places[KEEP:]:
            place.path.unlink(missing_ok=True)
            place.manifest.unlink(missing_ok=True)

    def _exists(self) -> bool:
        """Whether the folder is there. Raises `CheckpointError` for a link on the way to it."""
        path = self._root
        for part in self._parts:
            path = path / part
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                return False
            if not stat.S_ISDIR(mode):
                raise CheckpointError(f"{path} is not a folder")
        return True

    def _make(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root
        for part in self._parts:
            path = path / part
            path.mkdir(mode=0o700, exist_ok=True)
        self._exists()


def _is_whole(place: Place, expected: str) -> bool:
    try:
        manifest = _verified(place)
    except (OSError, ValueError, TypeError) as error:
        logger.warning("checkpoint %s can't be used: %s", place.path, error)
        return False
    if manifest.fingerprint != expected:
        logger.warning("checkpoint %s is of another trial or version, it is not used", place.path)
        return False
    return True


def _verified(place: Place) -> Manifest:
    """The manifest of a file that is as it was written.

    OSError if either can't be read; TypeError if a field is missing or unknown; ValueError if the manifest is
    not JSON or of another file, or the file is not the one that it describes.
    """
    manifest = Manifest(**_read_manifest(place.manifest))
    if (manifest.epoch, manifest.attempt) != (place.epoch, place.attempt):
        raise ValueError("its manifest is of another file")
    digest, size = _digest(place.path)
    if (manifest.sha256, manifest.size) != (digest, size):
        raise ValueError("it is damaged, its SHA-256 is not the one it was written with")
    return manifest


def _digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file, which is no link."""
    found = hashlib.sha256()
    size = 0
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return found.hexdigest(), size


def _read_manifest(path: Path) -> dict[str, Any]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
        content = json.loads(file.read(CHUNK_BYTES))
    if not isinstance(content, dict):
        raise TypeError("its manifest is not one")
    return content


def _write_manifest(path: Path, manifest: Manifest) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    made = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(made, "w", encoding="utf-8") as file:
            json.dump(asdict(manifest), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _to_disk(folder: Path) -> None:
    """Bring a folder's list of names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: object) -> object:
    if isinstance(value, Choice):
        return [value.name, dict(value.options)]
    return dict(value) if isinstance(value, Mapping) else value
