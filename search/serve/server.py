"""Listens: the view's application behind its guard, on an HTTP server of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from search.failures import CommandError, ExitCode, Failure, bad_input
from search.serve.app import application, describe_error
from search.serve.guard import admission, guarded, is_loopback
from storage.database import Database
from storage.pages import Pages, read_only

PASSWORD_VARIABLE = "SHOAL_SERVE_PASSWORD"  # noqa: S105  a variable's name
SHORTEST_PASSWORD = 12
"""Characters; nothing slows down guessing but the password's length."""

THREADS = 4
"""Requests answered at a time: as many as the pool of connections holds."""


def resolve_password(host: str, password_file: Path | None) -> str | None:
    """The password from the file or `$SHOAL_SERVE_PASSWORD`; None if there is none and none is needed.

    Raises `CommandError` (bad input) for one that is too short, for a file that can't be read, and where
    other machines could reach the view without one.
    """
    given = os.environ.get(PASSWORD_VARIABLE) or None
    if password_file is not None:
        try:
            given = password_file.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise bad_input(f"can't read the password file {password_file}: {error}") from None
    if given is not None and len(given) < SHORTEST_PASSWORD:
        raise bad_input(
            f"the password is too short: {SHORTEST_PASSWORD} characters or more",
            next="python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one",
        )
    if given is None and not is_loopback(host):
        raise bad_input(
            f"{host} can be reached from other machines, so a password is needed",
            next=f"give --password-file FILE or ${PASSWORD_VARIABLE}",
        )
    return given


def serve(
    database_url: str,
    host: str,
    port: int,
    *,
    password: str | None,
    names: Sequence[str] = (),
    dashboard: str | None = None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until interrupted; `on_ready` gets the URL once connections are accepted.

    Port 0 takes a free one. Raises `CommandError` where the address can't be bound, and
    `KeyboardInterrupt` when it ends.
    """
    import waitress

    with Database(read_only(database_url), application_name="shoal serve") as database:
        served = guarded(
            application(Pages(database), dashboard), admission(host, password, names), describe_error
        )
        try:
            server = waitress.create_server(
                served,
                # As a name it would be two addresses, each with a free port of its own.
                host="127.0.0.1" if host == "localhost" else host,
                port=port,
                threads=THREADS,
                ident=None,
                expose_tracebacks=False,
                clear_untrusted_proxy_headers=True,
                max_request_body_size=1024,
                max_request_header_size=32768,
            )
        except (OSError, ValueError) as error:
            raise CommandError(
                Failure(
                    ExitCode.FAILED,
                    "address",
                    f"can't listen on {host}:{port}",
                    why=getattr(error, "strerror", None) or str(error),
                    next="shoal serve --port 0 takes a free port",
                )
            ) from None
        try:
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{server.effective_port}/")
            server.run()
        finally:
            server.close()
    # The server ends in peace when it is interrupted; the command tells of it.
    raise KeyboardInterrupt
