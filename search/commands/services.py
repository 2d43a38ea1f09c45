"""Commands about what experiments stand on: `db`, `dashboard`, `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.text import Text

from search import output
from search.commands.options import COMMAND_PATIENCE, AsJson, DatabaseUrl, flag, opened
from search.failures import ExitCode

db = App(name="db", help="The database: start or stop the embedded Postgres, print the URL, check it.")


@db.command
def up(*, as_json: AsJson = False) -> None:
    """Start the embedded Postgres if it doesn't run; other commands do so by themselves."""
    from storage.embedded import EmbeddedPostgres
    from storage.urls import mask

    server = EmbeddedPostgres()
    url = mask(server.start())
    if as_json:
        output.document("db/1", {"running": True, "url": url, "directory": str(server.directory)})
    else:
        output.show(f"running: {url}")


@db.command
def down(*, as_json: AsJson = False) -> None:
    """Stop the embedded Postgres; what it stores stays."""
    from storage.embedded import EmbeddedPostgres

    server = EmbeddedPostgres()
    running = server.status().running
    server.stop()
    if as_json:
        output.document(
            "db/1", {"running": False, "was_running": running, "directory": str(server.directory)}
        )
    else:
        output.show("stopped" if running else "it was not running")


@db.command
def url(
    *,
    show_password: Annotated[
        bool,
        flag("Print the URL with its password; mind who looks."),
    ] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Print the URL of the database that commands use, its password masked."""
    from storage.urls import mask, resolve_url

    found = resolve_url(database)
    shown = found if show_password else mask(found)
    if as_json:
        output.document("db/1", {"url": shown})
    else:
        output.text(f"{shown}\n")


@db.command
def check(
    *,
    experiment: Annotated[
        str | None, Parameter(help="Check the history of this experiment only, not of all.")
    ] = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> int:
    """Look at everything about the database that has to be right; change nothing.

    Also at the history of all trials: each ended once, by the holder of its lease, and the tables
    say what the event log tells.
    """
    from storage.checker import check_history
    from storage.database import Database, resolve_url
    from storage.experiments import Experiments

    with Database(resolve_url(database), patience=COMMAND_PATIENCE) as connection:
        results = connection.check()
        # Only where the tables are there and ours.
        readable = all(result.ok for result in results if result.name in ("connection", "schema"))
        violations = []
        if readable:
            chosen = Experiments(connection).get(experiment).id if experiment is not None else None
            violations = check_history(connection, chosen)
    if as_json:
        checks = [asdict(result) for result in results]
        if readable:
            checks.append({"name": "history", "ok": not violations, "detail": _history(len(violations))})
        output.document("db-check/1", {"checks": checks, "violations": [asdict(one) for one in violations]})
    else:
        rows = [(_mark("ok" if r.ok else "fail"), r.name, r.detail) for r in results]
        if readable:
            rows.append((_mark("fail" if violations else "ok"), "history", _history(len(violations))))
        output.show(output.table(("", "check", "found"), rows))
        for violation in violations:
            output.show(f"{violation.rule}: {violation.where}: {violation.detail}")
    if all(result.ok for result in results) and not violations:
        return ExitCode.OK
    unreachable = any(result.name == "connection" and not result.ok for result in results)
    return ExitCode.UNREACHABLE if unreachable else ExitCode.FAILED


def _history(violations: int) -> str:
    if not violations:
        return "no violations"
    return f"{violations} violation{'s' if violations > 1 else ''}"


def _mark(state: str) -> Text:
    words = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
    return Text(words[state][0], style=words[state][1])


def dashboard(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. There is no login: mind who can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = 8080,
    database: DatabaseUrl = None,
) -> None:
    """Serve Optuna Dashboard on the same database until Ctrl-C."""
    from search.dashboard import is_loopback, serve

    if not is_loopback(host):
        output.warn(f"{host} can be reached from other machines, and the dashboard has no login: "
                    "whoever reaches it can read and delete studies")  # fmt: skip
    with opened(database) as connection:
        url = connection.url
    output.message("starting Optuna Dashboard …", style="dim")
    serve(url, host, port, lambda address: output.message(f"Optuna Dashboard: {address} (Ctrl-C ends it)"))


def doctor(
    file: Annotated[
        Path | None, Parameter(help="Look into the data folder of this experiment file as well.")
    ] = None,
    /,
    *,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> int:
    """Check Python, torch, Ray, the database, memory and folders; say what to do about each."""
    from search.doctor import examine

    folders: list[Path] = []
    if file is not None:
        from search.spec import load_spec

        data = load_spec(file).data
        folders = [Path(data.root)] if data is not None and data.root else []
    findings = list(examine(database, folders))
    if as_json:
        output.document("doctor/1", {"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [
            (_mark(f.state), f.name, f"{f.detail}{f' → {f.remedy}' if f.remedy else ''}") for f in findings
        ]
        output.show(output.table(("", "check", "found"), rows))
    return ExitCode.FAILED if any(finding.state == "fail" for finding in findings) else ExitCode.OK
