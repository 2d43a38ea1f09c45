"""Our tables of when and where experiments are run: launches on clusters, schedules and their firings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import (
    EXPERIMENT_NAME,
    SHORT_NAME,
    SUBMISSION,
    Base,
    Experiment,
    finite_and_not_negative,
    one_of,
)
from storage.records import LaunchState
from storage.schedule_records import Each, FiringState, Overlap, WebhookFormat


class Launch(Base):
    """One submission of an experiment to a cluster: a driver that supervises its workers there."""

    __tablename__ = "launches"
    __table_args__ = (
        # Of two that submit the same experiment at once, one makes the generation.
        UniqueConstraint("experiment_id", "generation"),
        # A cluster refuses a submission that it has seen.
        UniqueConstraint("submission"),
        CheckConstraint("generation >= 1", name="generation_from_one"),
        CheckConstraint(one_of("state", LaunchState), name="state_known"),
        CheckConstraint("(state IN ('submitted', 'running')) = (ended_at IS NULL)", name="ended_when_over"),
        CheckConstraint("exit_code IS NULL OR ended_at IS NOT NULL", name="exit_code_at_the_end"),
        CheckConstraint("submission <> '' AND address <> ''", name="place_given"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey(Experiment.id, ondelete="CASCADE"))
    generation: Mapped[int]
    """From 1: each start of a driver that is not known to live has the next one."""
    submission: Mapped[str] = mapped_column(String(SUBMISSION))
    """The name under which the cluster knows it."""
    address: Mapped[str]
    """Where it was submitted; holds no secret."""
    options: Mapped[dict[str, Any]]
    """What the driver was told besides the experiment's name."""
    state: Mapped[str] = mapped_column(server_default="submitted")
    reason: Mapped[str | None]
    exit_code: Mapped[int | None]
    """Of the driver, if it lived to say it."""
    submitted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


def finite_and_positive(column: str) -> str:
    """A CHECK for spans of time that must not be empty; NULL passes."""
    return f"{column} > 0 AND {column} < 'Infinity'"


class Schedule(Base):
    """When an experiment is run again and again. A removed one keeps its row: its firings are history."""

    __tablename__ = "schedules"
    __table_args__ = (
        # A name means one schedule; one that was removed is taken up again with its generations.
        UniqueConstraint("name"),
        CheckConstraint("name <> '' AND cron <> '' AND timezone <> ''", name="texts_given"),
        CheckConstraint(one_of("overlap", Overlap), name="overlap_known"),
        CheckConstraint(one_of("each", Each), name="each_known"),
        CheckConstraint(one_of("webhook_format", WebhookFormat), name="webhook_format_known"),
        CheckConstraint(finite_and_positive("budget_seconds"), name="budget_positive"),
        CheckConstraint(finite_and_positive("stalled_seconds"), name="stalled_positive"),
        CheckConstraint(finite_and_not_negative("late_seconds"), name="late_finite"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(SHORT_NAME))
    spec: Mapped[dict[str, Any]]
    cron: Mapped[str]
    timezone: Mapped[str]
    overlap: Mapped[str]
    each: Mapped[str]
    budget_seconds: Mapped[float | None]
    stalled_seconds: Mapped[float | None]
    late_seconds: Mapped[float | None]
    webhook: Mapped[str | None]
    webhook_format: Mapped[str]
    options: Mapped[dict[str, Any]]
    paused_at: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]
    decided_until: Mapped[datetime]
    """Every firing time up to this one has been decided about."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Firing(Base):
    """One firing of a schedule: a generation of its experiment, or why there is none."""

    __tablename__ = "firings"
    __table_args__ = (
        # Of two schedulers that fire at once, one does.
        UniqueConstraint("schedule_id", "scheduled_for"),
        UniqueConstraint("schedule_id", "generation"),
        # Firings of a schedule never overlap, whatever becomes of those that want to.
        Index(
            "firings_one_running_per_schedule",
            "schedule_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
        CheckConstraint(one_of("state", FiringState), name="state_known"),
        CheckConstraint("generation >= 1", name="generation_from_one"),
        CheckConstraint("missed >= 0 AND attempts >= 0", name="counts_not_negative"),
        CheckConstraint("(state IN ('queued', 'running')) = (ended_at IS NULL)", name="ended_when_over"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="leased_while_running"),
        CheckConstraint("(state = 'running') = (beaten_at IS NOT NULL)", name="beaten_while_running"),
        CheckConstraint(
            "state NOT IN ('failed', 'stalled', 'skipped', 'missed') OR reason IS NOT NULL",
            name="reason_given",
        ),
        CheckConstraint(finite_and_not_negative("spent_seconds"), name="spent_finite"),
        CheckConstraint(finite_and_positive("budget_seconds"), name="budget_positive"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    schedule_id: Mapped[int] = mapped_column(ForeignKey(Schedule.id, ondelete="CASCADE"))
    generation: Mapped[int]
    scheduled_for: Mapped[datetime]
    manual: Mapped[bool]
    state: Mapped[str]
    reason: Mapped[str | None]
    missed: Mapped[int]
    """Firing times before this one that nobody was there for."""
    experiment: Mapped[str | None] = mapped_column(String(EXPERIMENT_NAME))
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Processes that have run it; what one writes that is no longer the last is refused."""
    runner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    beaten_at: Mapped[datetime | None]
    budget_seconds: Mapped[float | None]
    spent_seconds: Mapped[float] = mapped_column(server_default="0")
    """That its processes have run, all together."""
    report: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Notice(Base):
    """A note about the end of a firing, stored with that end: it is sent at least once."""

    __tablename__ = "notices"
    __table_args__ = (
        # A firing ends once, and that is told in one note.
        UniqueConstraint("firing_id"),
        Index(
            "notices_waiting",
            "next_try_at",
            postgresql_where=text("sent_at IS NULL AND given_up_at IS NULL"),
        ),
        CheckConstraint("sent_at IS NULL OR given_up_at IS NULL", name="ended_once"),
        CheckConstraint("tries >= 0", name="tries_not_negative"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    firing_id: Mapped[int] = mapped_column(ForeignKey(Firing.id, ondelete="CASCADE"))
    body: Mapped[str]
    tries: Mapped[int] = mapped_column(server_default="0")
    next_try_at: Mapped[datetime]
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    given_up_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
