"""What a command says and returns when it can't do what was asked.

Every error that a user can meet ends here, in one table from error class to exit code: what
happened, why, and the next command. Commands raise; only `cli.main` prints and exits.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from search.experiment.problems import Problem, SpecError
from storage.errors import (
    DatabaseOccupied,
    DatabaseRefuses,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    EmbeddedError,
    ExperimentBusy,
    ExperimentExists,
    ExperimentNotFound,
    FileUnsuitable,
    ScheduleExists,
    ScheduleNotFound,
    StorageError,
)


class ExitCode(enum.IntEnum):
    """What a command returns to the shell."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in words: what happened, why, and what to do next."""

    code: ExitCode
    kind: str
    """Stable name for programs."""
    what: str
    why: str = ""
    next: str = ""
    problems: tuple[Problem, ...] = ()


class CommandError(Exception):
    """A command can't do what was asked, in the words of its `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


def bad_input(what: str, *, next: str = "", problems: Sequence[Problem] = ()) -> CommandError:
    """The user asked for something that can't be."""
    return CommandError(Failure(ExitCode.BAD_INPUT, "bad_input", what, next=next, problems=tuple(problems)))


def not_found(what: str, *, why: str = "", next: str = "") -> CommandError:
    """What the user named doesn't exist."""
    return CommandError(Failure(ExitCode.NOT_FOUND, "not_found", what, why, next))


def unreachable(what: str, *, next: str = "") -> CommandError:
    """Something that we need doesn't answer."""
    return CommandError(Failure(ExitCode.UNREACHABLE, "unreachable", what, next=next))


OTHER_ROLE = (
    "come with the URL of a role that may (SHOAL_DATABASE_URL_FILE): shoal_worker runs experiments and "
    "schedules, shoal_owner migrates and restores, the server's administrator makes roles"
)
"""What to do where the database denies a right."""


def failure_of(error: Exception) -> Failure | None:
    """The error in words; None for one that no user should ever meet."""
    # Late, for commands that look at experiments do without `objectives`.
    from objectives.base import ObjectiveError

    message = str(error)
    match error:
        case CommandError():
            return error.failure
        case SpecError():
            count = len(error.problems)
            what = f"the experiment file has {count} problem{'' if count == 1 else 's'}"
            return Failure(ExitCode.BAD_INPUT, "spec", what, problems=error.problems)
        case ExperimentNotFound():
            return Failure(
                ExitCode.NOT_FOUND, "not_found", message, next="shoal status lists all experiments"
            )
        case ScheduleNotFound():
            return Failure(ExitCode.NOT_FOUND, "not_found", message, next="shoal schedule list")
        case ScheduleExists():
            return Failure(ExitCode.CONFLICT, "conflict", message, next="--replace, or --name another")
        case ExperimentExists():
            return Failure(ExitCode.CONFLICT, "conflict", message, next="give the experiment another name")
        case ExperimentBusy():
            return Failure(ExitCode.CONFLICT, "busy", message, next="shoal watch shows how it goes")
        case DatabaseRefuses():
            return Failure(ExitCode.CONFLICT, "refused", message, next=OTHER_ROLE)
        case DatabaseOccupied():
            return Failure(
                ExitCode.CONFLICT, "occupied", message, next="--force, or --into an empty database"
            )
        case FileUnsuitable():
            return Failure(ExitCode.BAD_INPUT, "file", message)
        case DatabaseUnreachable() | DatabaseUnsuitable() | EmbeddedError():
            return Failure(ExitCode.UNREACHABLE, "database", message, next="shoal db check, or shoal doctor")
        case StorageError() | ObjectiveError():
            return Failure(ExitCode.FAILED, "failed", message)
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            return Failure(ExitCode.FAILED, "system", f"{name}{error.strerror or message}")
        case _:
            return None
