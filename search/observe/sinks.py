"""Sinks: where finished trials are written besides the database, for those who look at them there.

A sink gets a trial once it has ended for good, with its config, curve and final numbers, and each
trial once: what a sink holds already it says itself, so nothing has to be remembered between runs,
and one that was lost is filled again. What it holds half, after a crash, it replaces. The libraries
are optional and imported when a sink is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from search.failures import CommandError, ExitCode, Failure, bad_input
from search.logs import masked

if TYPE_CHECKING:
    from storage.finished import FinishedTrial

SINKS_VARIABLE = "SHOAL_SINKS"


class SinkError(Exception):
    """A sink can't be read or written now; trying again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The experiment whose trials a sink is given."""

    experiment: str
    birth: str
    """Tells it from others of the same name, in other databases."""
    metric: str


class Sink(Protocol):
    """Takes finished trials of one experiment. One thread. Every method raises `SinkError` alone."""

    def known(self) -> set[int]:
        """Ids of the trials that it holds whole."""

    def write(self, trial: FinishedTrial) -> None:
        """Hold a trial. If this fails, `known` is asked again before anything else is written."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which sink, and where."""

    kind: str
    """A key of `SINKS`."""
    place: str

    @property
    def shown(self) -> str:
        """For messages: a place may hold a password."""
        return masked(f"{self.kind}:{self.place}")


def target_of(said: str) -> Target:
    """``mlflow:http://host:5000`` or ``tensorboard:FOLDER``. Raises `CommandError` (bad input)."""
    kind, colon, place = said.partition(":")
    if kind not in SINKS or not colon or not place:
        examples = " or ".join(f"{known}:{sink.example}" for known, sink in SINKS.items())
        raise bad_input(f"{Target(kind, place).shown!r} is no sink", next=f"one looks like {examples}")
    if "://" in place and urlsplit(place).password:
        # A command line is seen by everybody on the machine.
        raise bad_input(
            f"{Target(kind, place).shown}: a password does not belong into a sink's address",
            next="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD hold MLflow's",
        )
    return Target(kind, place)


def targets(said: Iterable[str] = ()) -> list[Target]:
    """The sinks that were asked for, and those of `SHOAL_SINKS` (separated by commas), each once.

    Raises `CommandError` for what is no sink, and for one whose library is not installed.
    """
    given = [word.strip() for word in os.environ.get(SINKS_VARIABLE, "").split(",")]
    found = list(dict.fromkeys(target_of(word) for word in (*said, *given) if word))
    for target in found:
        check_installed(target)
    return found


def open_sink(target: Target, origin: Origin) -> Sink:
    """Open a sink. Raises `SinkError` where it is away."""
    module, _, name = SINKS[target.kind].opener.partition(":")
    opener: Callable[[str, Origin], Sink] = getattr(importlib.import_module(module), name)
    return opener(target.place, origin)


def check_installed(target: Target) -> None:
    """Raise `CommandError` if a sink's library is not installed."""
    if importlib.util.find_spec(SINKS[target.kind].library) is None:
        raise CommandError(
            Failure(
                ExitCode.FAILED,
                "missing",
                f"the sink {target.kind} needs a library that is not installed",
                next=f"pip install 'shoal[{target.kind}]'",
            )
        )


def name_of(trial: FinishedTrial) -> str:
    """What a trial is called where only its experiment is known: ``tpe/0/12``, ``tpe/0/retrained/3``."""
    row = trial.row
    retrained = "/retrained" if trial.role == "retraining" else ""
    return f"{row.method}/{row.replicate}{retrained}/{row.number}"


def tags_of(trial: FinishedTrial, origin: Origin) -> dict[str, str]:
    """What tells a trial from others, and how it ended; short texts by name."""
    row = trial.row
    tags: dict[str, object] = {
        "experiment": origin.experiment,
        "study": row.study_name,
        "method": row.method,
        "replicate": row.replicate,
        "role": trial.role,
        "trial": row.number,
        "trial_id": row.trial_id,
        "attempts": row.attempts,
        "seed": trial.seed,
        "state": row.state,
        "diverged": row.diverged,
        "metric": origin.metric,
        "reason": row.reason,
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def finals_of(trial: FinishedTrial) -> dict[str, float]:
    """A trial's numbers at its end; what is not finite is left out."""
    row = trial.row
    finals: dict[str, float | None] = {
        "value": row.value,
        "epochs": float(row.epochs),
        "device_seconds": row.seconds,
        "sampler_seconds": row.sampler_seconds,
        **{f"test_{name}": value for name, value in trial.test.items()},
    }
    return {name: value for name, value in finals.items() if value is not None and math.isfinite(value)}


def curves_of(trial: FinishedTrial) -> list[tuple[int, dict[str, float]]]:
    """A trial's curve: epoch, and the finite numbers of that epoch by name."""
    points = []
    for point in trial.curve:
        numbers = {
            "train_loss": point.train_loss,
            "validation_loss": point.validation_loss,
            "learning_rate": point.learning_rate,
            "gradient_norm": point.gradient_norm,
            "epoch_seconds": point.seconds,
            **point.metrics,
        }
        points.append((point.epoch, {name: v for name, v in numbers.items() if v is not None}))
    return points


@dataclass(frozen=True, slots=True)
class SinkKind:
    """A kind of sink."""

    library: str
    """The module without which it does nothing; an extra of ours has the sink's name."""
    opener: str
    """``module:function``, called with the place and the `Origin`."""
    example: str


SINKS: Mapping[str, SinkKind] = {
    "mlflow": SinkKind("mlflow", "search.observe.sink_mlflow:MlflowSink", "http://localhost:5000"),
    "tensorboard": SinkKind("tensorboard", "search.observe.sink_tensorboard:TensorboardSink", "FOLDER"),
}
"""Name → sink."""
