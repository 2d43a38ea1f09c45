"""Commands about the database: `db up`, `down`, `url`, `check`, `migrate`, `roles`, `backup`, `restore`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from search import output
from search.commands.options import COMMAND_PATIENCE, AsJson, DatabaseUrl, flag
from search.failures import ExitCode

db = App(name="db", help="The database: the embedded Postgres, tables, roles, checks, backups.")


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
        rows = [(output.mark("ok" if r.ok else "fail"), r.name, r.detail) for r in results]
        if readable:
            rows.append((output.mark("fail" if violations else "ok"), "history", _history(len(violations))))
        output.show(output.table(("", "check", "found"), rows))
        for violation in violations:
            output.show(f"{violation.rule}: {violation.where}: {violation.detail}")
    if all(result.ok for result in results) and not violations:
        return ExitCode.OK
    unreachable = any(result.name == "connection" and not result.ok for result in results)
    return ExitCode.UNREACHABLE if unreachable else ExitCode.FAILED


@db.command
def migrate(*, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Make the tables, or bring them to this version's form; to be run as their owner.

    Ours and Optuna's. Commands that run as the owner do so by themselves; those of other roles say when it
    is needed.
    """
    from storage.database import Database, resolve_url
    from storage.optuna_storage import close_optuna_storage, open_optuna_storage
    from storage.roles import seal

    with Database(resolve_url(database), patience=COMMAND_PATIENCE) as connection:
        before = (connection.revision(), connection.optuna_revision())
        connection.migrate()
        close_optuna_storage(open_optuna_storage(connection.url))
        seal(connection)
        after = (connection.revision(), connection.optuna_revision())
    names = ("shoal", "Optuna")
    if as_json:
        found = {
            name: {"before": old, "after": new} for name, old, new in zip(names, before, after, strict=True)
        }
        output.document("db-migrate/1", {"schemas": found})
        return
    rows = [(name, old or "none yet", new) for name, old, new in zip(names, before, after, strict=True)]
    output.show(output.table(("tables", "before", "now"), rows))


@db.command
def roles(
    *,
    passwords_from: Annotated[
        Path | None,
        Parameter(
            help="Folder with a file per role that holds its password; one that is missing is made. "
            "Default: `roles` in the data folder."
        ),
    ] = None,
    print_sql: Annotated[
        bool, flag("Print the SQL, without passwords, instead of running it: for who runs the server.")
    ] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make the database's three roles: shoal_owner, shoal_worker and shoal_reader.

    To be run as the server's superuser, or as a role that may make roles and owns the database; on the
    embedded Postgres that is seen to. Run it again after a password file was replaced.
    """
    from storage.database import Database
    from storage.embedded import EmbeddedPostgres, default_directory
    from storage.role_files import passwords, write_urls
    from storage.roles import OWNER, ROLES, make_roles, statements, worker_connections
    from storage.urls import url_of_environment

    url = database or url_of_environment()
    embedded = EmbeddedPostgres() if url is None else None
    if embedded is not None:
        url = embedded.start()
    folder = passwords_from or default_directory().parent / "roles"
    administrator = embedded.administrator_url() if embedded is not None else url
    assert url is not None
    assert administrator is not None
    with Database(administrator, patience=COMMAND_PATIENCE, application_name="shoal db roles") as connection:
        if print_sql:
            name = connection.engine.url.database or "shoal"
            output.text("".join(f"{line};\n" for line in statements(name, worker_connections(connection))))
            output.message("passwords are not among it: set them with \\password in psql")
            return
        # Nobody changes the password with which he has come; the embedded server keeps its owner's.
        keeps = embedded is not None or connection.engine.url.username == OWNER
        given = passwords(folder, ROLES if keeps else (OWNER, *ROLES))
        elsewhere = make_roles(connection, given)
    urls = write_urls(folder, url, given)
    if as_json:
        found = [
            {
                "role": role,
                "password_file": str(folder / role),
                "url_file": str(urls[role]) if role in urls else None,
            }
            for role in given
        ]
        output.document("db-roles/1", {"roles": found, "also_reach": elsewhere})
        return
    rows = [(role, folder / role, urls.get(role, "")) for role in given]
    output.show(output.table(("role", "password in", "URL in (for SHOAL_DATABASE_URL_FILE)"), rows))
    if elsewhere:
        output.message(
            f"they may connect to other databases of this server as well: {', '.join(elsewhere)}; each one's "
            "owner can take that away: REVOKE CONNECT ON DATABASE … FROM PUBLIC"
        )


@db.command
def backup(
    *,
    out: Annotated[Path, Parameter(help="File to write.")],
    force: Annotated[bool, flag("Replace a file that is there.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Back up all experiments into one file (pg_dump's); they may run meanwhile.

    The role shoal_reader is enough. Checkpoints of running trials are not part of it.
    """
    from storage.backups import back_up
    from storage.database import Database, resolve_url

    with Database(resolve_url(database), patience=COMMAND_PATIENCE) as connection:
        made = back_up(connection, out, overwrite=force)
    if as_json:
        body = {"file": str(made.path), "bytes": made.size, "schema": made.revision}
        output.document("db-backup/1", body)
    else:
        output.show(f"{made.path}: {made.size:,} bytes, schema {made.revision}")


@db.command
def restore(
    file: Annotated[Path, Parameter(help="A backup of `shoal db backup`; only one of your own.")],
    /,
    *,
    into: Annotated[
        str | None, Parameter(help="Postgres URL of the database to fill; default: as for `--database`.")
    ] = None,
    force: Annotated[bool, flag("Drop what the database holds of ours and of Optuna's.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill an empty database from a backup, as its owner; stop the workers first.

    Trials that ran when the backup was made wait again, and nothing that a worker of the old database still
    writes is accepted. `shoal resume NAME` goes on with an experiment.
    """
    from search.trials.orphans import orphans
    from storage.backups import restore as fill
    from storage.database import Database, resolve_url

    with Database(resolve_url(into), patience=COMMAND_PATIENCE) as connection:
        done = fill(connection, file, replace=force)
        left = orphans(connection)
    if as_json:
        output.document(
            "db-restore/1",
            {
                "file": str(file),
                "schema": done.revision,
                "released_trials": done.fenced.released,
                "ended_workers": done.fenced.workers,
                "orphan_checkpoints": [str(path) for path in left],
            },
        )
        return
    output.show(
        f"restored: schema {done.revision}; {done.fenced.released} trials that ran wait again, "
        f"{done.fenced.workers} workers are taken for gone"
    )
    if left:
        output.message("checkpoints here that no open trial of this database uses; they may be removed:")
        for path in left:
            output.message(f"  {path}")


def _history(violations: int) -> str:
    if not violations:
        return "no violations"
    return f"{violations} violation{'s' if violations > 1 else ''}"
