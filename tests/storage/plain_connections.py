"""Connections to a server by psycopg2 alone, without `Database`."""

from __future__ import annotations

from contextlib import closing

import psycopg2
from sqlalchemy.engine import make_url


def connect(url: str, **changes: object):
    parsed = make_url(url).set(drivername="postgresql", **changes)
    return psycopg2.connect(parsed.render_as_string(hide_password=False))


def ask(url: str, statement: str):
    with closing(connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None
