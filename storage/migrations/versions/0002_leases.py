"""Leases: tokens and deadlines of attempts, what names a process for good, and the event log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

REFUSE_CHANGE = """
CREATE FUNCTION shoal.refuse_event_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed or deleted' USING ERRCODE = 'restrict_violation';
END $$
"""
APPEND_ONLY = """
CREATE TRIGGER events_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON shoal.events
FOR EACH STATEMENT EXECUTE FUNCTION shoal.refuse_event_change()
"""
EVENT_KINDS = (
    "'registered', 'retired', 'claimed', 'drawn', 'released', 'requeued', 'completed', 'pruned', 'failed', "
    "'expired', 'given_up', 'refused', 'retried'"
)
NOW, CLOCK = sa.text("now()"), sa.text("clock_timestamp()")


def upgrade() -> None:
    """Give attempts leases, workers their process, epochs their moment; make the event log."""
    _lease_attempts()
    _place_workers()
    op.add_column(
        "epochs",
        sa.Column("written_at", sa.DateTime(timezone=True), server_default=CLOCK, nullable=False),
        schema="shoal",
    )
    _make_events()


def _lease_attempts() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("lease_tokens", schema="shoal", data_type=sa.BigInteger)))
    op.add_column("attempts", sa.Column("token", sa.BigInteger(), nullable=True), schema="shoal")
    # Attempts were numbered by `id` in the order in which they began, as tokens are from now on.
    op.execute("UPDATE shoal.attempts SET token = id")
    op.execute("SELECT setval('shoal.lease_tokens', max(id)) FROM shoal.attempts HAVING count(*) > 0")
    op.alter_column(
        "attempts",
        "token",
        nullable=False,
        server_default=sa.text("nextval('shoal.lease_tokens')"),
        schema="shoal",
    )
    op.create_unique_constraint("attempts_token_unique", "attempts", ["token"], schema="shoal")
    for name in ("deadline", "beaten_at"):
        column = sa.Column(name, sa.DateTime(timezone=True), server_default=NOW, nullable=False)
        op.add_column("attempts", column, schema="shoal")
    for added in (
        sa.Column("sampler_seconds", sa.Double(), nullable=True),
        sa.Column("last_step", sa.Integer(), nullable=True),
        sa.Column("last_write", sa.BigInteger(), nullable=True),
    ):
        op.add_column("attempts", added, schema="shoal")
    op.create_check_constraint(
        "attempts_sampler_seconds_finite",
        "attempts",
        "sampler_seconds >= 0 AND sampler_seconds < 'Infinity'",
        schema="shoal",
    )
    op.create_index(
        "attempts_running_by_worker",
        "attempts",
        ["worker_id"],
        unique=False,
        schema="shoal",
        postgresql_where=sa.text("state = 'running'"),
    )


def _place_workers() -> None:
    for name in ("boot", "process_space", "process_birth"):
        op.add_column("workers", sa.Column(name, sa.Text(), nullable=True), schema="shoal")
    op.add_column("workers", sa.Column("registration", sa.BigInteger(), nullable=True), schema="shoal")
    op.create_unique_constraint("workers_registration_unique", "workers", ["registration"], schema="shoal")


def _make_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=CLOCK, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=True),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("trial_id", sa.Integer(), nullable=True),
        sa.Column("trial_number", sa.Integer(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("token", sa.BigInteger(), nullable=True),
        sa.Column("worker_id", sa.Integer(), nullable=True),
        sa.Column("write", sa.BigInteger(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.CheckConstraint(f"kind IN ({EVENT_KINDS})", name="events_kind_known"),
        sa.PrimaryKeyConstraint("id", name="events_pk"),
        schema="shoal",
    )
    op.create_index(
        "events_experiment_id_id_index", "events", ["experiment_id", "id"], unique=False, schema="shoal"
    )
    op.create_index("events_write_index", "events", ["write"], unique=False, schema="shoal")
    op.execute(REFUSE_CHANGE)
    op.execute(APPEND_ONLY)
