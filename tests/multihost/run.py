"""Break a cluster of five machines in each of seven ways, and print what it cost.

    python -m tests.multihost.run [--scenario NAME ...] [--output FILE]

Needs root, for the machines are network namespaces. A failed scenario is told, and the others go on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from tests.multihost import counts, scenarios
from tests.multihost.lab import lab
from tests.multihost.network import missing


def main() -> int:
    """Run, print, and say by the exit code whether all was as promised."""
    known = [*scenarios.SCENARIOS, "together"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=known, help="default: all")
    parser.add_argument("--output", type=Path, help="write the counts here as JSON too")
    told = parser.parse_args()
    if reason := missing():
        print(f"can't be run here: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it clears up
    rows, failed = [], 0
    with lab() as made:
        for name in told.scenario or known:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                row = scenarios.together(made) if name == "together" else scenarios.run(made, name)
            except Exception:  # noqa: BLE001 (told, and counted)
                traceback.print_exc()
                failed += 1
                continue
            rows.append(row)
            print(counts.table([row]), file=sys.stderr, flush=True)
    print(counts.table(rows))
    if told.output is not None:
        counts.write(rows, told.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
