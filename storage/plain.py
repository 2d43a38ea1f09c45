"""A connection for a look: the driver alone, without SQLAlchemy, which takes longer to import than a look.

Only for statements that read. It knows no patience and no words for what goes wrong: whoever uses it asks
again, on a connection that has both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from storage.sessions import CONNECTION, SESSION, STATEMENT_LIMITS

PLAIN = re.compile(
    r"""(?:postgres|postgresql|postgresql\+psycopg2)://
    (?:[A-Za-z0-9_.~-]+(?::[A-Za-z0-9_.~-]+)?@)?  # user and password
    [A-Za-z0-9.-]+(?::[1-9][0-9]{0,4})?  # host and port
    /[A-Za-z0-9_-]+
    (?:\?sslmode=[a-z-]+)?""",
    re.VERBOSE,
)
"""A URL that means the same to everybody who reads it: nothing in it is quoted, doubled or left out."""

NAMED = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")
"""A value's name in a statement, as SQLAlchemy finds it: no cast, and not inside a word."""


class PlainError(Exception):
    """It could not be asked or was not answered."""


class Plain:
    """One connection, made when first used. Each statement is a transaction. One thread."""

    def __init__(self, url: str, application_name: str) -> None:
        """`url` is one that `PLAIN` matches."""
        self._url = "postgresql://" + url.partition("://")[2]
        self._settings = CONNECTION | {"application_name": application_name}
        self._connection: Any = None

    def rows(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """The rows of a statement with its values by name (`:name`): tuples with names.

        Raises `PlainError` for whatever goes wrong, and has no connection then.
        """
        import psycopg2
        from psycopg2.extras import NamedTupleCursor

        try:
            if self._connection is None:
                self._connection = psycopg2.connect(
                    self._url, cursor_factory=NamedTupleCursor, **self._settings
                )
                self._connection.autocommit = True
                with self._connection.cursor() as cursor:
                    cursor.execute(SESSION.format(**STATEMENT_LIMITS))
            with self._connection.cursor() as cursor:
                cursor.execute(drivers(statement), dict(values))
                return list(cursor.fetchall())
        except psycopg2.Error as error:
            self.close()
            raise PlainError(str(error)) from None

    def close(self) -> None:
        """Close the connection; the next statement makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@lru_cache(maxsize=64)
def drivers(statement: str) -> str:
    """The statement in the driver's notation."""
    return NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))
