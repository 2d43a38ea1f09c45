"""How long people wait for what they look at, at 10,000 trials × 20 epochs.

    python -m tests.benchmarks.pages [--rounds 5] [--dashboard-rounds 1] [--output results.json]

In a database of its own on the embedded Postgres: the commands `status`, `trials` and `report`, each a fresh
process, less the interpreter's start; a study's page of `shoal serve` and of Optuna Dashboard in a headless
Chromium with an empty cache, from the request to the study's numbers on the screen. Optuna Dashboard reads
through Optuna's stock storage. The JSON has every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import make_server

from playwright.sync_api import Browser, Page, sync_playwright

from storage.database import URL_VARIABLE, Database
from storage.embedded import HOME_VARIABLE, EmbeddedPostgres
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.benchmarks.fused_cpu import git
from tests.contracts.big_experiment import Size, store_big_experiment

SHOAL = Path(sys.executable).parent / "shoal"

MANY, ONE = "many-studies", "one-study"
"""10,000 trials in twelve studies, and in one."""

PATIENCE = 600_000
"""Milliseconds for a page."""

COMMANDS: dict[str, Sequence[str]] = {
    "interpreter": (sys.executable, "-c", "pass"),
    "help": (str(SHOAL), "--help"),
    "status": (str(SHOAL), "status", MANY),
    "status of one study": (str(SHOAL), "status", ONE),
    "trials": (str(SHOAL), "trials", MANY),
    "trials --json --limit 100": (str(SHOAL), "trials", MANY, "--json", "--limit", "100"),
    "trials --json": (str(SHOAL), "trials", MANY, "--json"),
    "report": (str(SHOAL), "report", MANY, "--out", "report"),
}


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def summary(values: Sequence[float]) -> dict[str, object]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {**found, "n": len(values), "rounds": list(values)}


def commands(folder: Path, environment: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every command, the commands in turn in each round, after one round that doesn't count.

    By the clock, and of the CPU: the latter without Postgres', but hardly disturbed by others.
    """
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = timed(
                lambda command=command: subprocess.run(  # type: ignore[misc]
                    command, cwd=folder, env=environment, capture_output=True, check=True
                )
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if number:
                times[name]["wall"].append(seconds)
                times[name]["cpu"].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return times


@contextmanager
def serving(command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A server in a process of its own; its address without the last slash."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield next(
                found[0] for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line))
            )
        finally:
            process.send_signal(signal.SIGINT)


def pages(browser: Browser, address: str, arrived: Callable[[Page], object], rounds: int) -> list[float]:
    """Seconds from the request to what was waited for, each with an empty cache."""
    times = []
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        times.append(timed(lambda page=page: (page.goto(address), arrived(page))))  # type: ignore[misc]
        context.close()
    return times


def stock_dashboard(url: str) -> None:
    """Serve Optuna Dashboard over Optuna's own storage until interrupted."""
    from optuna.storages import RDBStorage
    from optuna_dashboard import wsgi

    with make_server("127.0.0.1", 0, wsgi(RDBStorage(url))) as server:
        sys.stderr.write(f"http://127.0.0.1:{server.server_port}/\n")
        sys.stderr.flush()
        server.serve_forever()


def measured(folder: Path, rounds: int, dashboard_rounds: int) -> dict[str, object]:
    url = EmbeddedPostgres(folder / "postgres", durable=False).start()
    environment = {**os.environ, URL_VARIABLE: url, HOME_VARIABLE: str(folder)}
    with Database(url) as database:
        database.migrate()
        close_optuna_storage(open_optuna_storage(url))
        store_big_experiment(database, MANY)
        one = store_big_experiment(database, ONE, Size(methods=("tpe",), replicates=1))
        study = database.scalar(f"SELECT id FROM shoal.experiment_studies WHERE experiment_id = {one.id}")
        optunas = database.scalar(f"SELECT study_id FROM studies WHERE study_name LIKE '{ONE}/%'")
        epochs = database.scalar("SELECT count(*) FROM shoal.epochs") / 2
    times = commands(folder, environment, rounds)
    start = {kind: statistics.median(values) for kind, values in times["interpreter"].items()}
    found: dict[str, object] = {
        "epochs_per_experiment": epochs,
        "seconds_beyond_the_interpreters_start": {
            name: {
                kind: summary([max(0.0, one - start[kind]) for one in values])
                for kind, values in kinds.items()
            }
            for name, kinds in times.items()
        },
    }
    chromium = next(
        path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))
    )
    stock = (sys.executable, "-m", "tests.benchmarks.pages", "--stock-dashboard", url)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        with serving((str(SHOAL), "serve", "--port", "0", "--no-open"), folder, environment) as address:
            pages(browser, f"{address}/studies/{study}", lambda page: page.wait_for_selector(".live.on"), 1)
            ours = pages(
                browser,
                f"{address}/studies/{study}",
                lambda page: (page.wait_for_selector("table.trials"), page.wait_for_selector(".live.on")),
                rounds,
            )
        found["study_page_seconds"] = study_page = {"shoal serve": summary(ours)}
        if dashboard_rounds:
            with serving(stock, Path.cwd(), environment) as address:
                theirs = pages(
                    browser,
                    f"{address}/dashboard/studies/{optunas}",
                    lambda page: page.get_by_text("Best Trial (number=").wait_for(),
                    dashboard_rounds,
                )
            study_page["Optuna Dashboard"] = summary(theirs)
            found["ratio"] = statistics.median(theirs) / statistics.median(ours)
        browser.close()
    return found


def circumstances() -> dict[str, object]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "revision": git("rev-parse", "HEAD"),
        "changed_since": git(
            "status", "--porcelain", "--", "search", "storage", "tests/benchmarks"
        ).splitlines(),
        "python": platform.python_version(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dashboard-rounds", type=int, default=1, help="0 leaves Optuna Dashboard out")
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--stock-dashboard", metavar="URL", help="only serve it (used by this command itself)"
    )
    arguments = parser.parse_args()
    if arguments.stock_dashboard:
        stock_dashboard(arguments.stock_dashboard)
        return
    results = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        try:
            results |= measured(Path(folder), arguments.rounds, arguments.dashboard_rounds)
        finally:
            EmbeddedPostgres(Path(folder) / "postgres", durable=False).stop()
    results["load_after"] = os.getloadavg()
    print(json.dumps(results, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
