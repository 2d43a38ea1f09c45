"""Commands around experiments: `dashboard`, `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search import output
from search.commands.options import AsJson, DatabaseUrl, flag, opened
from search.failures import ExitCode, bad_input


def dashboard(
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. There is no login: others want --behind-proxy.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = 8080,
    behind_proxy: Annotated[
        bool,
        flag("Nobody reaches the address but through a proxy that asks for a login, as in deploy/proxy."),
    ] = False,
    name: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Another host name by which it is asked, such as a proxy's for it; may be repeated.",
        ),
    ] = (),
    artifacts: Annotated[
        Path | None, Parameter(help="Folder with the files that were uploaded with optuna.artifacts.")
    ] = None,
    database: DatabaseUrl = None,
) -> None:
    """Serve Optuna Dashboard on the same database until Ctrl-C."""
    from search.dashboard import serve
    from search.serve.guard import is_loopback

    if not is_loopback(host) and not behind_proxy:
        raise bad_input(
            f"{host} can be reached from other machines, and the dashboard has no login: whoever reaches it "
            "can read and delete studies",
            next="leave --host out, or give --behind-proxy where deploy/proxy, or the like, stands before it",
        )
    if artifacts is not None and not artifacts.is_dir():
        raise bad_input(f"there is no folder {artifacts}", next="name the folder of FileSystemArtifactStore")
    with opened(database) as connection:
        url = connection.url

    def ready(address: str) -> None:
        output.message(f"Optuna Dashboard: {address} (Ctrl-C ends it)")

    output.message("starting Optuna Dashboard …", style="dim")
    serve(url, host, port, ready, names=name, artifacts=artifacts)


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
        from search.experiment.spec import load_spec

        data = load_spec(file).data
        folders = [Path(data.root)] if data is not None and data.root else []
    findings = list(examine(database, folders))
    if as_json:
        output.document("doctor/1", {"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [
            (output.mark(f.state), f.name, f"{f.detail}{f' → {f.remedy}' if f.remedy else ''}")
            for f in findings
        ]
        output.show(output.table(("", "check", "found"), rows))
    return ExitCode.FAILED if any(finding.state == "fail" for finding in findings) else ExitCode.OK
