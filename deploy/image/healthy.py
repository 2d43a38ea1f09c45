"""Whether a container can do its work, for health checks: exit code 0 or 1, and why on stderr.

With a URL: whether something answers there that has no mistake of its own; asking for a password (401)
is an answer. Without one: whether the database's port accepts a connection, which is what every worker
needs. Nothing is imported but the standard library: it runs every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 5.0
"""Seconds."""
POSTGRES_PORT = 5432


def answers(url: str) -> None:
    """Raises `OSError` if nothing answers, or an error of the server's."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(url, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise OSError(f"{url}: {error.code} {error.reason}") from None


def database_url() -> str:
    """The URL from the environment or from the file that it names. Raises `OSError` if there is neither."""
    if url := os.environ.get("SHOAL_DATABASE_URL"):
        return url
    if file := os.environ.get("SHOAL_DATABASE_URL_FILE"):
        return Path(file).read_text(encoding="utf-8").strip()
    raise OSError("neither SHOAL_DATABASE_URL nor SHOAL_DATABASE_URL_FILE is set")


def database_reached(url: str) -> None:
    """Raises `OSError` if the port does not accept a connection; says nothing of the password."""
    place = urlsplit(url)
    try:
        host, port = place.hostname or "localhost", place.port or POSTGRES_PORT
    except ValueError:
        # Its message may quote what stands before the port, such as a password with a colon.
        raise OSError("the database URL can't be read") from None
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise OSError(f"database at {host}:{port}: {error}") from None


def main(arguments: list[str]) -> int:
    """0 if healthy."""
    try:
        if arguments:
            answers(arguments[0])
        else:
            database_reached(database_url())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
