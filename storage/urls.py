"""Database URLs: which are accepted, how they look without their password, why one can't be reached."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from storage import lazily as sql
from storage.errors import DatabaseBusy, DatabaseFull, DatabaseUnreachable
from storage.plain import PLAIN

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

URL_VARIABLE = "SHOAL_DATABASE_URL"
FILE_VARIABLE = "SHOAL_DATABASE_URL_FILE"
"""Names a file that holds the URL: secrets of containers are files."""
EXAMPLE = "postgresql://user:password@host:5432/database"
DRIVER = "postgresql+psycopg2"
LONGEST = 4096
"""Characters of a URL in a file."""
SCHEMES = ("postgresql", "postgres", DRIVER)

HIDDEN = "***"
SECRET_OPTIONS = re.compile(r"(?i)\b((?:ssl)?password|passfile|sslkey)=[^&\s]*")

REMEDIES = (
    ("password authentication failed", "the server refuses this user or password", "check both", False),
    ("does not exist", "there is no such database or user", "create it on the server", False),
    ("no password supplied", "the server wants a password", "put it into the URL", False),
    ("no pg_hba.conf entry", "the server does not admit this user from here", "ask who runs it", False),
    ("Connection refused", "nothing listens at that host and port", "is the server running?", True),
    ("could not translate host name", "no such host", "check the host's name", False),
    ("timeout expired", "no answer", "check host, port and firewall", True),
    ("Network is unreachable", "the network is unreachable", "check the host and your network", True),
    ("No route to host", "no route to the host", "check the host and your network", True),
    ("too many clients", "the server has no connection left", "try again, or raise max_connections", True),
    ("too many connections", "the server has no connection left", "try again, or raise the limit", True),
    ("connection slots", "the server has no connection left", "try again, or raise max_connections", True),
    ("the database system is", "the server is starting or stopping", "try again", True),
    ("server closed the connection", "the server closed the connection", "try again", True),
    ("terminating connection", "the server ended the connection", "try again", True),
    ("SSL connection has been closed", "the server closed the connection", "try again", True),
    ("SSL SYSCALL error", "the connection broke", "try again", True),
    ("Connection reset by peer", "the connection broke", "try again", True),
    ("Broken pipe", "the connection broke", "try again", True),
    ("connection already closed", "the connection broke", "try again", True),
    ("SSL", "no agreement on encryption", "check `sslmode` in the URL", False),
)
"""What the driver says → what it means, what to do, and whether trying again may help."""


FULL = ("too many clients", "connection slots", "too many connections")
"""What a server says that has no connection left."""
STARTING = "the database system is"
"""What a server says that is starting or stopping."""


def resolve_url(url: str | None = None) -> str:
    """The URL to use: the argument, else the environment's, else the embedded server's, started.

    Raises `DatabaseUnreachable` for a URL that is not Postgres' or a file of one that can't be used,
    `EmbeddedError` if ours can't start.
    """
    given = url if url is not None else url_of_environment()
    if given is not None:
        return canonical(given)
    from storage.embedded import EmbeddedPostgres

    return EmbeddedPostgres().start()


def url_of_environment() -> str | None:
    """`$SHOAL_DATABASE_URL`, or what the file that `$SHOAL_DATABASE_URL_FILE` names holds; None without both.

    Who may read the file is its owner's business, for a container's secrets are often readable by all
    inside it; a file that others may write is refused, since it decides where results go. Raises
    `DatabaseUnreachable`, also where both are set.
    """
    given, name = os.environ.get(URL_VARIABLE) or None, os.environ.get(FILE_VARIABLE) or None
    if name is None:
        return given
    if given is not None:
        raise DatabaseUnreachable(f"{URL_VARIABLE} and {FILE_VARIABLE} are both set; unset one of them")
    try:
        if Path(name).stat().st_mode & stat.S_IWOTH:
            raise DatabaseUnreachable(
                f"{FILE_VARIABLE}: everybody may write {name}, so it is not trusted; chmod o-w {name}"
            )
        with Path(name).open(encoding="utf-8") as file:
            found = file.read(LONGEST + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DatabaseUnreachable(f"{FILE_VARIABLE}: can't read {name}: {reason}") from None
    if not found or len(found) > LONGEST or len(found.splitlines()) > 1:
        raise DatabaseUnreachable(f"{FILE_VARIABLE}: {name} does not hold one line with a URL like {EXAMPLE}")
    return found


def canonical(url: str) -> str:
    """The same URL with the driver named, as SQLAlchemy and Optuna take it; password included."""
    if PLAIN.fullmatch(url):
        return f"{DRIVER}://{url.partition('://')[2]}"
    return parse(url).render_as_string(hide_password=False)


def parse(url: str) -> URL:
    """Check and parse a URL. Raises `DatabaseUnreachable` without quoting the password."""
    scheme, separator, _ = url.strip().partition("://")
    if not separator:
        raise DatabaseUnreachable(f"that is no database URL; one looks like {EXAMPLE}")
    if scheme not in SCHEMES:
        raise DatabaseUnreachable(
            f"{mask(url)}: only Postgres can be used ({', '.join(f'{known}://' for known in SCHEMES)}); "
            f"leave the URL out to use the embedded one"
        )
    try:
        parsed = sql.make_url(url.strip()).set(drivername=DRIVER)
        understood = "@" not in (parsed.host or "") and "@" not in (parsed.database or "")
    except (sql.ArgumentError, ValueError):
        understood = False
    if not understood:
        raise DatabaseUnreachable(
            f"{mask(url)} can't be read; a URL looks like {EXAMPLE}, and special characters in the "
            "password are written as %40 for @, %2F for /, %3A for :"
        )
    return parsed


def mask(url: str) -> str:
    """The URL fit for a message: whatever may be a password is replaced.

    Up to the last @ everything after the user counts as password, so that one with an
    unescaped @ or / doesn't show in part.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return HIDDEN
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    shown = f"{user}:{HIDDEN}" if colon else user
    return SECRET_OPTIONS.sub(rf"\1={HIDDEN}", f"{scheme}://{shown}{at}{place}")


def unreachable(url: str, driver_message: str) -> DatabaseUnreachable:
    """The error for a failed connection; its text is ours and one line of the driver's, scrubbed."""
    line = next((line.strip() for line in driver_message.splitlines() if line.strip()), "no reason given")
    known = [entry[1:] for entry in REMEDIES if entry[0] in driver_message]
    meaning, remedy, retryable = known[0] if known else (scrub(url, line), "check the URL", False)
    kind: type[DatabaseUnreachable] = DatabaseUnreachable
    if any(words in driver_message for words in FULL):
        kind = DatabaseFull
    elif STARTING in driver_message:
        kind = DatabaseBusy
    return kind(
        f"can't reach the database {mask(url)}: {meaning}; {remedy} "
        f"(`--database`, {URL_VARIABLE} or {FILE_VARIABLE}; without them the embedded Postgres is used)",
        retryable=retryable,
    )


def scrub(url: str, text: str) -> str:
    """`text` without the URL's password, in case somebody's message quotes it."""
    password = sql.make_url(url).password
    return text.replace(str(password), HIDDEN) if password else text
