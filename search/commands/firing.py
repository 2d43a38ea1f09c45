"""`shoal schedule fire`, `run` and `render`: what makes schedules fire, here and on a cluster."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from search import output
from search.commands.options import AsJson, DatabaseUrl, flag, opened
from search.commands.schedule_display import firing_json, said
from search.commands.scheduling import Name, schedule
from search.failures import CommandError, ExitCode, Failure, bad_input

if TYPE_CHECKING:
    from search.schedules.processes import ShoalLauncher
    from search.schedules.rendering import Target
    from search.schedules.scheduler import Scheduler
    from storage.database import Database

__all__ = ["fire", "render", "run", "schedule"]

GOOD = frozenset({"finished", "out_of_budget", "skipped", "missed"})
"""Ends of a firing that are as they should be."""
SECONDS_TO_LEAVE = 0.2
"""Between two looks while we leave."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where firings of this process train and write."""

    reports: Path = Path("reports")
    """Folder of reports, one folder for each generation."""
    ray_address: str | None = None
    """Join the Ray cluster there; `auto`: the one that this machine is part of."""


@schedule.command
def fire(
    name: Name,
    /,
    *,
    if_due: Annotated[
        bool, flag("Only if a firing is due, and at most once for each firing time: for timers.")
    ] = False,
    here: Here | None = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> int:
    """Fire a schedule once, run that to its end, and return how it ended: out of budget and skipped are 0.

    A firing that an earlier process left unfinished is finished first. SIGTERM ends the epochs, stores
    everything and leaves the firing to whoever fires next, with exit code 143.
    """
    from search.schedules.scheduler import Once, Postman
    from storage.outbox import Outbox
    from storage.schedules import Schedules

    with opened(database) as connection:
        schedules = Schedules(connection)
        once = Once(schedules, schedules.get(name), _launcher(database, connection, here), output.message)
        postman = Postman(Outbox(connection), output.message)
        postman.start()

        def leave(why: str) -> None:
            once.leaving = why

        with _leaving(leave, once.kill) as received:
            fired = once.fire(if_due=if_due)
        left = postman.finish()
    if left:
        output.message("a note waits to be sent: whoever fires next, or shoal schedule run, tries again")
    if as_json:
        body = {
            "schedule": name,
            "state": fired.state,
            "firing": fired.firing and firing_json(fired.firing),
        }
        output.document("fired/1", body)
    elif fired.firing is None:
        output.message(f"nothing of {name} is due")
    elif fired.state is not None:
        output.message(f"{name} generation {fired.firing.generation}: {said(fired.state)}")
    if received:
        return 128 + received[0]
    return ExitCode.OK if fired.state is None or fired.state in GOOD else ExitCode.FAILED


@schedule.command
def run(
    names: Annotated[
        tuple[str, ...], Parameter(help="Only these schedules. Default: all, also later ones.")
    ] = (),
    /,
    *,
    here: Here | None = None,
    database: DatabaseUrl = None,
) -> int:
    """Fire schedules when they are due, until Ctrl-C or SIGTERM, and send the notes that wait.

    For a machine that is on all day, and for compose. Several of these at once fire nothing twice.
    """
    from search.schedules.scheduler import Postman, Scheduler
    from storage.outbox import Outbox
    from storage.schedules import Schedules

    with opened(database) as connection:
        schedules = Schedules(connection)
        for name in names:
            schedules.get(name)
        # Commands give up on a database that is away; who runs all day waits for it.
        scheduler = Scheduler(
            schedules, _launcher(database, connection, here), output.message, names=names or None
        )
        postman = Postman(Outbox(connection), output.message)
        postman.start()
        known = [one.name for one in schedules.list() if not names or one.name in names]
        output.message(f"firing {', '.join(known) or 'nothing yet'}; Ctrl-C ends it")
        asked: list[str] = []
        with _leaving(asked.append, scheduler.kill) as received:
            _fire_until(asked, scheduler)
            _settle(asked, received, scheduler)
        postman.finish()
    return 128 + received[0] if received else ExitCode.OK


def _fire_until(asked: Sequence[str], scheduler: Scheduler) -> None:
    """Look after schedules until somebody asks us to end."""
    from search.schedules.scheduler import IDLE_SECONDS
    from storage.errors import DatabaseUnreachable

    away = False
    while not asked:
        try:
            scheduler.tick()
            pause = scheduler.wait_seconds()
        except DatabaseUnreachable as error:
            if not error.retryable:
                raise
            if not away:
                output.warn(f"the database is away, waiting for it: {error}")
            away, pause = True, IDLE_SECONDS
        else:
            away = False
        until = time.monotonic() + pause
        while (rest := until - time.monotonic()) > 0 and not asked:
            time.sleep(min(rest, SECONDS_TO_LEAVE))


def _settle(asked: Sequence[str], received: Sequence[int], scheduler: Scheduler) -> None:
    """Wait for what runs to end in order; after a second signal for nothing."""
    from storage.errors import DatabaseUnreachable

    with contextlib.suppress(DatabaseUnreachable):
        scheduler.leave(asked[0])
    while scheduler.running and len(received) == 1:
        with contextlib.suppress(DatabaseUnreachable):
            scheduler.settle()
        time.sleep(SECONDS_TO_LEAVE)


@contextmanager
def _leaving(leave: Callable[[str], None], kill: Callable[[], None]) -> Iterator[list[int]]:
    """Meanwhile a first SIGINT or SIGTERM leaves in order, a second kills. Yields the signals that came."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            leave(f"asked to end by {signal.Signals(number).name}")
        else:
            kill()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launcher(database: str | None, connection: Database, here: Here | None) -> ShoalLauncher:
    from search.schedules.processes import ShoalLauncher

    here = here or Here()
    url = connection.url if database is not None else None
    return ShoalLauncher(url, here.reports, here.ray_address)


@schedule.command
def render(
    name: Name,
    /,
    *,
    to: Literal["kubernetes", "raycronjob", "slurm", "systemd"],
    out: Annotated[Path | None, Parameter(help="Folder to write into; default: stdout.")] = None,
    image: Annotated[str, Parameter(help="Image, for Kubernetes.")] = "shoal:latest",
    namespace: Annotated[str, Parameter(help="Namespace, for Kubernetes.")] = "shoal",
    gpus: Annotated[int, Parameter(help="GPUs of a machine that trains; 0: none.")] = 1,
    nodes: Annotated[int, Parameter(help="Machines that train, for Slurm and Ray.")] = 1,
    database: DatabaseUrl = None,
) -> None:
    """Write what fires a schedule on a cluster: each firing calls `shoal schedule fire NAME --if-due`.

    What is written holds no secret: it names the files and objects that do. The schedule itself stays in the
    database; render it again where its times change.
    """
    from search.schedules.rendering import Place, RenderError, rendered
    from storage.schedules import Schedules

    with opened(database) as connection:
        record = Schedules(connection).get(name)
    target: Target = to
    try:
        files = rendered(record, target, Place(image, namespace, gpus, nodes))
    except RenderError as error:
        raise bad_input(f"{name} can't be rendered to {to}", problems=error.problems) from None
    if out is None:
        for file, text in files.items():
            output.text(text if len(files) == 1 else f"# {file}\n{text}")
        return
    out.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        path = out / file
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if path.exists() and not _ours(path):
            raise CommandError(
                Failure(ExitCode.CONFLICT, "exists", f"{path} exists, and is not ours", next="another --out")
            )
        path.write_text(text, encoding="utf-8")
        output.message(f"wrote {path}")


def _ours(path: Path) -> bool:
    """Whether a file was rendered: whoever changed it by hand took the mark away."""
    from search.schedules.rendering import MARK

    return MARK in path.read_text(encoding="utf-8", errors="replace")
