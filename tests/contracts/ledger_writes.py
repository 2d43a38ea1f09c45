"""Draws, epochs and endings for tests to write to a ledger, its clock moved by hand, and its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy import text

from storage.database import Database
from storage.ledger import Draw, Ending, EpochWrite, Lease

STUDY = "e/tpe/0"

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "layers": IntDistribution(1, 5),
    "norm": CategoricalDistribution(["batch", None, 2, True]),
}


@dataclass(frozen=True)
class Epoch:
    """An epoch's report as an engine gives it."""

    epoch: int = 1
    train_loss: float | None = 0.5
    validation_loss: float | None = 0.75
    metrics: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.9})
    gradient_norm: float | None = 1.5
    learning_rate: float = 0.1
    seconds: float = 0.25
    images_per_second: float = 1000.0
    diverged: bool = False


def epoch_of(lease: Lease, step: int, value: float = 0.5, **changed: Any) -> EpochWrite:
    """An epoch to write."""
    return EpochWrite(lease=lease, report=Epoch(epoch=step, **changed), value=value)


def draw_of(lease: Lease, lr: float = 0.1, **more: Any) -> Draw:
    """Values to write."""
    values = {"lr": lr, "layers": 3, "norm": None}
    return Draw(lease=lease, values=values, distributions=DISTRIBUTIONS, **more)


def end(lease: Lease, state: str = "complete", value: float | None = None, **more: Any) -> Ending:
    """An ending to write, with what its state needs."""
    if state == "complete" and value is None:
        value = 0.5
    if state in ("failed", "retry"):
        more.setdefault("reason", "it broke")
    return Ending(lease=lease, state=state, value=value, **more)


def move_deadline(database: Database, seconds: float, token: int | None = None) -> None:
    """Let leases run out (or on) without waiting for it."""
    statement = (
        "UPDATE shoal.attempts SET deadline = deadline + make_interval(secs => :seconds) "
        "WHERE state = 'running' AND (CAST(:token AS bigint) IS NULL OR token = :token)"
    )
    with database.begin() as connection:
        connection.execute(text(statement), {"seconds": seconds, "token": token})


def events(database: Database, kind: str | None = None) -> list[tuple[str, int | None]]:
    """Kinds and tokens of the events of leases, in order."""
    statement = (
        "SELECT kind, token FROM shoal.events WHERE CAST(:kind AS text) IS NULL OR kind = :kind ORDER BY id"
    )
    with database.begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement), {"kind": kind})]
