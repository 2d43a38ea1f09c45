"""`shoal`: the command line. Wires the commands together; each lives in `search.commands`.

Data go to stdout and messages to stderr. Exit codes: 0 ok, 1 failed, 2 bad input, 3 not found, 4 conflict or
not allowed, 5 database or Ray unreachable, 130 after Ctrl-C. Importing this file must stay quick: torch, Ray
and Optuna are imported by the commands that need them.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, Group

from search import output
from search.failures import CommandError, ExitCode, Failure, failure_of
from search.logs import configure

DEBUG_VARIABLE = "SHOAL_DEBUG"
JSON_FLAG, DEBUG_FLAG = "--json", "--debug"
ADDRESS = re.compile(r"[\w+.-]+://.*", re.DOTALL)
"""An argument, or the end of one, that may hold a password and is not repeated."""

EPILOGUE = (
    "Every command takes --debug, which shows the traceback of an error; most take --json.\n"
    "Exit codes: 0 ok, 1 failed, 2 bad input, 3 not found, 4 conflict or not allowed, "
    "5 database or Ray unreachable, 130 Ctrl-C."
)


def own_version() -> str:
    """The version that is installed, for `--version`."""
    # Late: reading the metadata takes a tenth of what `shoal --help` takes.
    from importlib.metadata import version

    return version("shoal")


app = App(
    name="shoal",
    help="Compare grid, random and Bayesian hyperparameter search on image CNNs.",
    help_epilogue=EPILOGUE,
    version=own_version,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

EXPERIMENTS = Group("Experiments", sort_key=1)
RESULTS = Group("What happened", sort_key=2)
SERVICES = Group("Around it", sort_key=3)

COMMANDS = {
    EXPERIMENTS: {
        "init": "files",
        "plan": "files",
        "run": "running",
        "submit": "launching",
        "resume": "running",
        "retry": "running",
        "stop": "running",
        "worker": "joining",
        "schedule": "firing",
    },
    RESULTS: {
        "status": "reading",
        "watch": "reading",
        "logs": "launching",
        "trials": "reading",
        "best": "reading",
        "report": "reporting",
        "compare": "comparing",
        "export": "reporting",
        "score": "reporting",
    },
    SERVICES: {
        "drain": "joining",
        "serve": "serving",
        "dashboard": "services",
        "metrics": "observing",
        "doctor": "services",
        "bench": "benchmarks",
        "schema": "files",
        "db": "databases",
    },
}
"""Heading in the help → its commands in this order → the module of `search.commands` that has each.

Imported when the command is called, or when the help of all is shown: `shoal status` needs one of them.
"""

for group, commands in COMMANDS.items():
    for place, (command, module) in enumerate(commands.items()):
        app.command(f"search.commands.{module}:{command}", name=command, group=group, sort_key=place)


def main() -> None:
    """The console script."""
    # Imported modules and commands live to the end: looking through them for garbage, last at exit,
    # would take a fifth of the time of `shoal status`.
    gc.freeze()
    output.open_missing()
    output.spell()
    try:
        configure()
    except CommandError as error:
        output.show_failure(error.failure, as_json=False)
        sys.exit(error.failure.code)
    code = run_command(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed, never raised."""
    debug = DEBUG_FLAG in arguments or os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
    tokens = [token for token in arguments if token != DEBUG_FLAG]
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except KeyboardInterrupt:
        output.message("interrupted")
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # Whoever read our output has seen enough (`| head`); SystemExit is how rich says so while
        # cyclopts prints a help. Python would complain at exit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        output.discard(sys.stdout)
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001  the last place where an error can be put into words
        failure = _failure(error, tokens)
        if debug:
            sys.stderr.write(traceback.format_exc())
        with suppress(OSError):  # a full disk: it may be the failure itself
            output.show_failure(failure, as_json=JSON_FLAG in tokens)
        return failure.code
    return int(result) if isinstance(result, int) else ExitCode.OK


def _failure(error: Exception, tokens: Sequence[str]) -> Failure:
    """The error in words, for every kind of error."""
    if isinstance(error, CycloptsError):
        place = " ".join(error.command_chain or ())
        return Failure(
            ExitCode.BAD_INPUT, "usage", str(error), next=f"shoal {place} --help".replace("  ", " ")
        )
    known = failure_of(error)
    if known is not None:
        return known
    what = f"{type(error).__name__}: {error}"
    again = " ".join(("shoal", *(ADDRESS.sub("URL", token) for token in tokens), DEBUG_FLAG))
    return Failure(
        ExitCode.FAILED, "internal", what, why="this is a mistake in shoal", next=f"{again} shows where"
    )


if __name__ == "__main__":
    main()
