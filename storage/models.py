"""Our tables, in the Postgres schema `shoal` beside Optuna's.

No foreign key points at Optuna's tables: its dashboard may delete a study, and what was measured
stays. The migrations make these tables; a test proves both equal. Those of launches and schedules are in
`storage.launch_models`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.database import SCHEMA
from storage.records import AttemptState, EventKind, ExperimentState, Purpose, StudyRole

EXPERIMENT_NAME, STUDY_NAME, SHORT_NAME, SUBMISSION = 128, 512, 128, 256
"""Longest names in characters; Optuna's own study names hold 512."""


def one_of(column: str, states: Any) -> str:
    """A CHECK that a column holds one of a Literal's values."""
    return f"{column} IN ({', '.join(repr(state) for state in get_args(states))})"


def finite(column: str) -> str:
    """A CHECK that a float is neither infinite nor NaN, which Postgres sorts above infinity; NULL passes."""
    return f"{column} > '-Infinity' AND {column} < 'Infinity'"


def finite_and_not_negative(column: str) -> str:
    """A CHECK for durations, rates and norms."""
    return f"{column} >= 0 AND {column} < 'Infinity'"


class Base(DeclarativeBase):
    """All our tables."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "%(table_name)s_pk",
            "uq": "%(table_name)s_%(column_0_N_name)s_unique",
            "fk": "%(table_name)s_%(column_0_N_name)s_exists",
            "ck": "%(table_name)s_%(constraint_name)s",
            "ix": "%(table_name)s_%(column_0_N_name)s_index",
        },
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own name for it)
        datetime: DateTime(timezone=True),
        # Not jsonb: the order of keys is kept, so that a spec reads as it was written.
        dict[str, Any]: JSON,
        float: Double,
        str: Text,
    }


class Experiment(Base):
    """What an experiment file described."""

    __tablename__ = "experiments"
    __table_args__ = (
        # Two controllers that start the same file at once create one experiment.
        UniqueConstraint("name"),
        CheckConstraint(one_of("state", ExperimentState), name="state_known"),
        CheckConstraint("name <> ''", name="name_given"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(EXPERIMENT_NAME))
    spec: Mapped[dict[str, Any]]
    space_hash: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="created")
    stop_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    environment: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ExperimentStudy(Base):
    """One method × replicate, or the retraining of its winner. Not called `studies`, as Optuna's table is."""

    __tablename__ = "experiment_studies"
    __table_args__ = (
        # An Optuna study's trials are counted for one experiment only.
        UniqueConstraint("name"),
        # A method runs each replicate once, and its winners are retrained in one place.
        UniqueConstraint("experiment_id", "method", "replicate", "role"),
        CheckConstraint("replicate >= 0", name="replicate_not_negative"),
        CheckConstraint(one_of("role", StudyRole), name="role_known"),
        CheckConstraint("name <> '' AND method <> ''", name="names_given"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey(Experiment.id, ondelete="CASCADE"))
    method: Mapped[str] = mapped_column(String(SHORT_NAME))
    replicate: Mapped[int]
    name: Mapped[str] = mapped_column(String(STUDY_NAME))
    role: Mapped[str] = mapped_column(server_default="search")


class Worker(Base):
    """A process that runs trials. Whether it lives is told by its leases; on its host by the process."""

    __tablename__ = "workers"
    __table_args__ = (
        # Registering again, after a connection broke at the commit, finds the row that was made.
        UniqueConstraint("registration"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(String(SHORT_NAME))
    host: Mapped[str]
    process: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    """NULL for a worker that lives or that was killed."""
    boot: Mapped[str | None]
    """Which start of which machine; with the next three columns it names a process for good."""
    process_space: Mapped[str | None]
    """The namespace in which `process` is a number: containers have their own."""
    process_birth: Mapped[str | None]
    """When the process began, by the machine's own count: numbers of processes are used again."""
    registration: Mapped[int | None] = mapped_column(BigInteger)


LEASE_TOKENS = Sequence("lease_tokens", schema=SCHEMA, data_type=BigInteger, metadata=Base.metadata)


class Attempt(Base):
    """One time that a worker ran a trial: its lease, as long as it runs."""

    __tablename__ = "attempts"
    __table_args__ = (
        # Numbers say which attempt is the newest; two attempts of one trial can't share one.
        UniqueConstraint("trial_id", "number"),
        # A trial is never run by two workers at a time.
        Index(
            "attempts_one_running_per_trial",
            "trial_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
        # A token names one lease in the whole database.
        UniqueConstraint("token"),
        Index("attempts_study_id_index", "study_id"),
        # What a worker holds, and (they are few) all that runs.
        Index("attempts_running_by_worker", "worker_id", postgresql_where=text("state = 'running'")),
        CheckConstraint(finite_and_not_negative("sampler_seconds"), name="sampler_seconds_finite"),
        CheckConstraint(one_of("state", AttemptState), name="state_known"),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended_when_not_running"),
        CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="failed_with_reason"),
        CheckConstraint("number >= 1", name="number_from_one"),
        CheckConstraint("trial_number >= 0", name="trial_number_not_negative"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(ExperimentStudy.id, ondelete="CASCADE"))
    trial_id: Mapped[int]
    """Optuna's, unique in the database and never used again."""
    trial_number: Mapped[int]
    number: Mapped[int]
    worker_id: Mapped[int] = mapped_column(ForeignKey(Worker.id))
    state: Mapped[str] = mapped_column(server_default="running")
    reason: Mapped[str | None]
    traceback: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    token: Mapped[int] = mapped_column(BigInteger, LEASE_TOKENS, server_default=LEASE_TOKENS.next_value())
    """Fencing token: of two leases of a trial the later has the larger."""
    deadline: Mapped[datetime] = mapped_column(server_default=func.now())
    """When the lease ends if it isn't prolonged."""
    beaten_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was prolonged last."""
    sampler_seconds: Mapped[float | None]
    """What drawing the trial's values took; NULL if this attempt drew none."""
    last_step: Mapped[int | None]
    """The last epoch that this attempt reported."""
    last_write: Mapped[int | None] = mapped_column(BigInteger)
    """The number of the write that changed the row last: one that is tried again finds that it was done."""


class Epoch(Base):
    """One point of a trial's curve."""

    __tablename__ = "epochs"
    __table_args__ = (
        # Every point was measured by an attempt that is on record.
        ForeignKeyConstraint(["trial_id", "attempt"], [Attempt.trial_id, Attempt.number], ondelete="CASCADE"),
        Index("epochs_study_id_index", "study_id"),
        CheckConstraint("epoch >= 1", name="epoch_from_one"),
        CheckConstraint(finite("train_loss"), name="train_loss_finite"),
        CheckConstraint(finite("validation_loss"), name="validation_loss_finite"),
        CheckConstraint(finite_and_not_negative("gradient_norm"), name="gradient_norm_finite"),
        CheckConstraint(finite("learning_rate"), name="learning_rate_finite"),
        CheckConstraint(finite_and_not_negative("seconds"), name="seconds_finite"),
        CheckConstraint(finite_and_not_negative("images_per_second"), name="images_per_second_finite"),
    )

    # The key has one point per epoch: an epoch that is run again replaces the one before.
    trial_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    study_id: Mapped[int] = mapped_column(ForeignKey(ExperimentStudy.id, ondelete="CASCADE"))
    trial_number: Mapped[int]
    train_loss: Mapped[float | None]
    validation_loss: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    gradient_norm: Mapped[float | None]
    learning_rate: Mapped[float]
    seconds: Mapped[float]
    images_per_second: Mapped[float]
    diverged: Mapped[bool]
    written_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Event(Base):
    """Something that happened to a lease, a trial or a worker. The log only grows: a trigger refuses changes.

    No foreign keys: what happened has happened, also after an experiment was deleted.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("events_experiment_id_id_index", "experiment_id", "id"),
        # What a write did is looked up when the answer to it was lost.
        Index("events_write_index", "write"),
        CheckConstraint(one_of("kind", EventKind), name="kind_known"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    kind: Mapped[str]
    experiment_id: Mapped[int | None]
    study_id: Mapped[int | None]
    trial_id: Mapped[int | None]
    trial_number: Mapped[int | None]
    attempt: Mapped[int | None]
    token: Mapped[int | None] = mapped_column(BigInteger)
    worker_id: Mapped[int | None]
    write: Mapped[int | None] = mapped_column(BigInteger)
    """Events of one write of the ledger share its number."""
    detail: Mapped[dict[str, Any] | None]


class Program(Base):
    """How trials of a kind train on a kind of device: together with others, or alone. Decided once.

    A trial's last bits show which way it trained, so all workers and later runs go the same way.
    """

    __tablename__ = "programs"
    __table_args__ = (
        # Of workers that decide at once, the first decides for all.
        UniqueConstraint("experiment_id", "program", "batch", "device"),
        CheckConstraint("fused = (reason IS NULL)", name="reason_if_alone"),
        CheckConstraint("batch >= 1 AND slots >= 1 AND rows >= 1", name="sizes_from_one"),
        CheckConstraint(finite_and_not_negative("fused_rate"), name="fused_rate_finite"),
        CheckConstraint(finite_and_not_negative("alone_rate"), name="alone_rate_finite"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey(Experiment.id, ondelete="CASCADE"))
    program: Mapped[str]
    """The architecture, as JSON."""
    batch: Mapped[int]
    """Images of a batch, rounded up to one of a few sizes."""
    device: Mapped[str]
    fused: Mapped[bool]
    reason: Mapped[str | None]
    """Why alone."""
    fused_rate: Mapped[float | None]
    """Training images per second when it was decided; NULL: not measured."""
    alone_rate: Mapped[float | None]
    slots: Mapped[int | None]
    """The most that memory had room for; NULL: no limit was met."""
    rows: Mapped[int | None]
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TestReading(Base):
    """A reading of the sealed test images. A trigger refuses any change: the log only grows."""

    __test__ = False
    __tablename__ = "test_readings"
    __table_args__ = (
        Index("test_readings_experiment_id_index", "experiment_id"),
        # A winner is retrained and read once per seed.
        Index(
            "test_readings_one_per_retraining",
            "trial_id",
            "seed",
            unique=True,
            postgresql_where=text("purpose = 'retraining'"),
        ),
        CheckConstraint(one_of("purpose", Purpose), name="purpose_known"),
        CheckConstraint(
            "(purpose = 'retraining') = (retraining_trial_id IS NOT NULL)", name="retraining_named"
        ),
        # A function of the user's own has a value and no images.
        CheckConstraint(
            "epochs >= 1 AND images >= CASE purpose WHEN 'score' THEN 1 ELSE 0 END", name="something_read"
        ),
        CheckConstraint(finite_and_not_negative("seconds"), name="seconds_finite"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey(Experiment.id))
    study_name: Mapped[str] = mapped_column(String(STUDY_NAME))
    trial_id: Mapped[int]
    """The trial of the search whose config was trained."""
    trial_number: Mapped[int]
    config: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    validation: Mapped[dict[str, Any]]
    epochs: Mapped[int]
    images: Mapped[int]
    seconds: Mapped[float]
    read_at: Mapped[datetime] = mapped_column(server_default=func.now())
    purpose: Mapped[str] = mapped_column(server_default="score")
    retraining_trial_id: Mapped[int | None]
    """Of a retraining: the trial that trained it."""
