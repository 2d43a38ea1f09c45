"""How long report.html takes to open in a headless Chromium, by the page's own marks.

    python -m tests.benchmarks.report_page [--rounds 5] [--trials 112] [--output results.json]

Three methods × 30 replicates × the given trials. `script` is from navigation until our script runs, most of
which is the browser reading plotly.js; `first_figure` until the first figure stands; `bare` the same page
without any figure. `cpu` is the page's main thread alone, which others on the machine disturb least. CPU
seconds of making the report stand beside. The JSON has every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from search.compare.analysis import analyse
from search.compare.render import write_report
from tests.browser.conftest import ARGUMENTS, NAMES
from tests.contracts.comparison_values import comparison
from tests.contracts.simulated_experiment import simulated

MARKS = "Object.fromEntries(performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime]))"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=112)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.trials)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def measure(rounds: int, trials: int) -> dict[str, object]:
    """All rounds, full and bare page in turn."""
    found = simulated(replicates=30, trials=trials)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        analysis = analyse(found)
        analysed = time.process_time()
        files = write_report(found, Path(folder) / "full", analysis)
        written = time.process_time()
        bare = write_report(comparison([]), Path(folder) / "bare")
        executable = next(path for name in NAMES if (path := shutil.which(name)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
            version = browser.version
            rows = []
            for number in range(rounds):
                full, empty = _open(browser, files.html), _open(browser, bare.html)
                rows.append(
                    {
                        "round": number,
                        "script_ms": full["shoal:begin"],
                        "first_figure_ms": full["shoal:first-figure"],
                        "cpu_ms": full["cpu"],
                        "bare_script_ms": empty["shoal:begin"],
                        "bare_cpu_ms": empty["cpu"],
                        "load": os.getloadavg()[0],
                    }
                )
            browser.close()
        return {
            "trials": sum(len(one.trials) for one in found.studies),
            "cpu_seconds": {"analyse": analysed - begin, "write": written - analysed},
            "bytes": {
                "html": files.html.stat().st_size,
                "data": sum(path.stat().st_size for path in files.data),
            },
            "median_ms": {
                name: statistics.median(float(row[name]) for row in rows)
                for name in ("script_ms", "first_figure_ms", "cpu_ms", "bare_script_ms", "bare_cpu_ms")
            },
            "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "chromium": version},
            "rounds": rows,
        }


def _open(browser: Browser, page: Path) -> dict[str, float]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    session = opened.context.new_cdp_session(opened)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    opened.goto(page.as_uri())
    opened.wait_for_selector("html[data-drawn]")
    marks: dict[str, float] = opened.evaluate(MARKS)
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    opened.close()
    return marks | {"cpu": 1000 * metrics["TaskDuration"]}


if __name__ == "__main__":
    main()
