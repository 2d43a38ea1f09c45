"""Parameters that several commands share, with their help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from cyclopts import Parameter

if TYPE_CHECKING:
    from storage.database import Database


def flag(help: str, name: str | None = None) -> Parameter:
    """A switch that is off unless given."""
    return Parameter(name=name, negative="", show_default=False, help=help)


AsJson: TypeAlias = Annotated[bool, flag("Print JSON on stdout instead of tables.", "--json")]

DatabaseUrl: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--database",
        help="Postgres URL. Default: $SHOAL_DATABASE_URL, else the embedded Postgres, started on demand.",
    ),
]

Experiment: TypeAlias = Annotated[str, Parameter(help="Name of the experiment, as `shoal status` lists it.")]

SpecFile: TypeAlias = Annotated[Path, Parameter(help="Experiment file (YAML).")]

Device: TypeAlias = Literal["auto", "cpu", "cuda"]

DeviceOption: TypeAlias = Annotated[
    Device, Parameter(help="Where to train; `auto` takes a GPU if there is one.")
]

Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16"]

PrecisionOption: TypeAlias = Annotated[
    Precision,
    Parameter(
        help="In what products are computed; weights, losses and optimizers stay fp32. `auto`: as the "
        "experiment was begun, else fp32; `tf32` needs a GPU."
    ),
]

Trainer: TypeAlias = Literal["fused", "plain"]

NoNotes: TypeAlias = Annotated[bool, flag("Leave the notes and figures in Optuna Dashboard as they are.")]

TrialState: TypeAlias = Literal["waiting", "running", "complete", "pruned", "failed"]

MetricsPort: TypeAlias = Annotated[
    int | None,
    Parameter(
        help="Serve metrics of this process here; 0: a free port. Default: $SHOAL_METRICS_PORT, else none."
    ),
]

Sinks: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        name="--sink",
        negative="",
        show_default=False,
        help="Write finished trials to mlflow:URI or tensorboard:FOLDER as well; may be repeated. "
        "Default: $SHOAL_SINKS.",
    ),
]


COMMAND_PATIENCE = 5.0
"""Seconds for which a command waits for a database that is full or starting; workers wait longer."""


@contextmanager
def opened(url: str | None, *, looks: bool = False) -> Iterator[Database]:
    """The database of a command, closed when the command is done; `looks`: for a quick look (`Database`)."""
    from storage.database import open_database

    database = open_database(url, patience=COMMAND_PATIENCE, looks=looks)
    try:
        yield database
    finally:
        database.close()
