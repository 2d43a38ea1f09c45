"""`serve`: the read-only view of experiments in a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search import output
from search.commands.options import DatabaseUrl, opened


def serve(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. Any that other machines reach needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = 8090,
    password_file: Annotated[
        Path | None, Parameter(help="File with the password to ask for. Default: $SHOAL_SERVE_PASSWORD.")
    ] = None,
    name: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Another host name by which browsers reach it, such as a proxy's; may be repeated.",
        ),
    ] = (),
    dashboard: Annotated[
        str | None, Parameter(help="URL of a running `shoal dashboard`, for links to its pages.")
    ] = None,
    open_browser: Annotated[
        bool,
        Parameter(name="--open", negative="--no-open", help="Open it in a browser, if there is a screen."),
    ] = True,
    database: DatabaseUrl = None,
) -> None:
    """Show experiments live in a browser until Ctrl-C; it only reads."""
    from search.serve.server import resolve_password, serve

    password = resolve_password(host, password_file)
    with opened(database) as connection:
        url = connection.url

    def ready(address: str) -> None:
        output.message(f"shoal: {address} (Ctrl-C ends it)")
        if open_browser and _has_screen():
            import webbrowser

            webbrowser.open(address)

    serve(url, host, port, password=password, names=name, dashboard=dashboard, on_ready=ready)


def _has_screen() -> bool:
    """Whether a browser can be shown to whoever started the command."""
    if not sys.stderr.isatty():
        return False
    return sys.platform in {"darwin", "win32"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
