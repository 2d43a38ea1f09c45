"""Errors of the storage; every message is written for a user and holds no password."""

# ruff: noqa: N818 (the names say what happened: `except ExperimentExists`)

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.records import ExperimentRecord


class StorageError(Exception):
    """Base of all errors raised by `storage`."""

    retryable: bool = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class DatabaseUnreachable(StorageError):
    """No connection to the database: nothing listens, it refuses us, or the URL is wrong."""


class DatabaseBusy(DatabaseUnreachable):
    """The database is there but not for us now: no connection left, starting up, a lock held for long."""

    retryable = True

    def __init__(self, message: str, *, retryable: bool | None = None, waited_for_lock: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.waited_for_lock = waited_for_lock
        """Whether somebody held a lock for longer than we wait for one."""


class DatabaseFull(DatabaseBusy):
    """The server has no connection left: it is well, and others are ahead of us."""


class DatabaseUnsuitable(StorageError):
    """The database answers but can't be used: too old, a schema from a newer shoal, a missing right."""


class DatabaseRefuses(DatabaseUnsuitable):
    """The database is well, and the role with which we came may not do that there."""


class DatabaseOccupied(DatabaseUnsuitable):
    """A database that was to be filled holds something."""


class FileUnsuitable(StorageError):
    """A file that was named can't be used: no backup, no password, not to be read or written."""


class EmbeddedError(StorageError):
    """The embedded Postgres can't be started, stopped or used."""


class ExperimentExists(StorageError):
    """An experiment of that name exists; `existing` is its record."""

    def __init__(self, message: str, existing: ExperimentRecord) -> None:
        super().__init__(message)
        self.existing = existing


class ExperimentNotFound(StorageError):
    """No experiment of that name; `near` holds the names that resemble it."""

    def __init__(self, message: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.near = near


class ExperimentBusy(StorageError):
    """Another controller runs the experiment."""

    retryable = True


class ScheduleExists(StorageError):
    """A schedule of that name exists with other settings."""


class ScheduleNotFound(StorageError):
    """No schedule of that name."""


class StudyNotFound(StorageError):
    """No experiment holds a study of that name."""


class ValueRefused(StorageError):
    """A value that the schema forbids: not finite, negative where it can't be, an unknown state."""
