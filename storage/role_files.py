"""Files with the roles' passwords and URLs: the only way in which a password leaves or enters `shoal`.

In a folder, for each role: `shoal_worker` holds its password, `shoal_worker.url` the URL to put into
`SHOAL_DATABASE_URL_FILE`. A password that is there is used, one that isn't is made; who removes the file
and runs `shoal db roles` again has another password.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from storage.embedded_access import write_private
from storage.errors import FileUnsuitable

SHORTEST = 12
"""Characters of a password; the server doesn't slow down guessing."""
LONGEST = 1024


def passwords(folder: Path, roles: Iterable[str]) -> dict[str, str]:
    """The roles' passwords by role, those that are missing made and written (mode 0600).

    Raises `FileUnsuitable` for a file that can't be read or written, or that holds no password.
    """
    found = {}
    for role in roles:
        path = folder / role
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_private(path, secrets.token_urlsafe(24) + "\n")
            found[role] = _checked(path, path.read_text(encoding="utf-8").strip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise FileUnsuitable(f"the password file {path} can't be used: {reason}") from None
    return found


def write_urls(folder: Path, url: str, given: dict[str, str]) -> dict[str, Path]:
    """A file with the URL of each role (mode 0600), by role; `url` is anybody's to the same database.

    A folder that can't be written, such as a container's secrets, gets none.
    """
    written = {}
    for role, password in given.items():
        path = folder / f"{role}.url"
        text = make_url(url).set(username=role, password=password).render_as_string(hide_password=False)
        with suppress(OSError):
            write_private(path, text + "\n")
            written[role] = path
    return written


def _checked(path: Path, password: str) -> str:
    if not SHORTEST <= len(password) <= LONGEST or not password.isprintable():
        raise FileUnsuitable(
            f"the password file {path} does not hold one line of {SHORTEST} to {LONGEST} characters; "
            "remove it, and `shoal db roles` writes one"
        )
    return password
