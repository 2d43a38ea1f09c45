"""The three roles in a test's database, each with a URL of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.role_files import passwords
from storage.roles import READER, ROLES, WORKER, make_roles


def url_as(url: str, user: str, password: str) -> str:
    """The same URL for another role."""
    return make_url(url).set(username=user, password=password).render_as_string(hide_password=False)


def administrator_url(url: str) -> str:
    """The URL of the superuser of the session's server to the same database."""
    found = make_url(EmbeddedPostgres().administrator_url())
    assert found.username is not None
    return url_as(url, found.username, str(found.password))


@dataclass(frozen=True)
class RoleUrls:
    """How each role reaches the database."""

    owner: str
    worker: str
    reader: str


def roles_in(url: str, folder: Path) -> RoleUrls:
    """Make the roles in a database whose owner's URL is given; passwords lie in the folder."""
    given = passwords(folder, ROLES)
    with Database(administrator_url(url)) as administrator:
        make_roles(administrator, given)
    return RoleUrls(url, url_as(url, WORKER, given[WORKER]), url_as(url, READER, given[READER]))
