"""Optuna Dashboard on our database.

The dashboard has no login and can delete studies, so it listens on this machine alone unless a proxy with
a login stands before it (`deploy/proxy`), and answers only requests that were addressed to it by name: a
page elsewhere that points its own host name at 127.0.0.1 (DNS rebinding) gets a 403. What somebody
uploaded as an artifact is never shown as a page of ours: it would run with the reader's rights.

It asks for a whole study again and again. Over our storage, which reads what is new, that is two
milliseconds where stock Optuna reads everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from search.failures import CommandError, ExitCode, Failure
from search.serve.guard import admission, only_for
from search.serve.listening import bound

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SANDBOX = (
    ("Content-Security-Policy", "sandbox"),
    ("Content-Disposition", "attachment"),
    ("X-Content-Type-Options", "nosniff"),
)
"""On every artifact: it is saved, and where it is shown all the same it runs no script."""


def sandboxed(application: WSGIApplication) -> WSGIApplication:
    """The application, with `SANDBOX` on all artifacts, whatever it said itself."""
    ours = {name.lower() for name, _ in SANDBOX}

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def with_headers(status: str, headers: list[tuple[str, str]], *rest: object) -> object:
            kept = [header for header in headers if header[0].lower() not in ours]
            return start_response(status, [*kept, *SANDBOX], *rest)  # type: ignore[arg-type]  # WSGI's own types are stricter

        is_artifact = environ.get("PATH_INFO", "").startswith("/artifacts/")
        return application(environ, with_headers if is_artifact else start_response)  # type: ignore[arg-type]  # WSGI's own types are stricter

    return serve


def serve(
    database_url: str,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
    *,
    names: Iterable[str] = (),
    artifacts: Path | None = None,
) -> None:
    """Serve until interrupted; `on_ready` gets the URL once connections are accepted.

    `names`: other host names that lead to it, such as the one by which a proxy calls it. `artifacts`: the
    folder of the files that were uploaded with `optuna.artifacts`; None: there are none. Port 0 takes a
    free one. Raises `CommandError` where the address can't be bound.
    """
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    from storage.optuna_storage import opened_optuna_storage

    with opened_optuna_storage(database_url) as storage:
        kept = FileSystemArtifactStore(artifacts) if artifacts is not None else None
        application = only_for(
            admission(host, None, names).knows,
            sandboxed(wsgi(storage, artifact_store=kept)),
            "This dashboard answers to the address that `shoal dashboard` printed.",
        )
        try:
            server = bound(host, port, application)
        except OSError as error:
            raise CommandError(
                Failure(
                    ExitCode.FAILED,
                    "address",
                    f"can't listen on {host}:{port}",
                    why=error.strerror or str(error),
                    next="shoal dashboard --port 0 takes a free port",
                )
            ) from None
        with server:
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/")
            server.serve_forever()
