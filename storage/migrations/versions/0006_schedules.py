"""Schedules, their firings, and the notes that wait to be sent about them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NOW = sa.text("now()")


def upgrade() -> None:
    """Make the three tables."""
    _make_schedules()
    _make_firings()
    _make_notices()


def _make_schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("each", sa.Text(), nullable=False),
        sa.Column("budget_seconds", sa.Double(), nullable=True),
        sa.Column("stalled_seconds", sa.Double(), nullable=True),
        sa.Column("late_seconds", sa.Double(), nullable=True),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column("webhook_format", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("name <> '' AND cron <> '' AND timezone <> ''", name="schedules_texts_given"),
        sa.CheckConstraint("overlap IN ('skip', 'queue')", name="schedules_overlap_known"),
        sa.CheckConstraint("each IN ('new', 'continue')", name="schedules_each_known"),
        sa.CheckConstraint("webhook_format IN ('json', 'slack')", name="schedules_webhook_format_known"),
        sa.CheckConstraint(
            "budget_seconds > 0 AND budget_seconds < 'Infinity'", name="schedules_budget_positive"
        ),
        sa.CheckConstraint(
            "stalled_seconds > 0 AND stalled_seconds < 'Infinity'", name="schedules_stalled_positive"
        ),
        sa.CheckConstraint("late_seconds >= 0 AND late_seconds < 'Infinity'", name="schedules_late_finite"),
        sa.PrimaryKeyConstraint("id", name="schedules_pk"),
        sa.UniqueConstraint("name", name="schedules_name_unique"),
        schema="shoal",
    )


def _make_firings() -> None:
    op.create_table(
        "firings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("schedule_id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=False),
        sa.Column("manual", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("experiment", sa.String(length=128), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("runner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("beaten_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("budget_seconds", sa.Double(), nullable=True),
        sa.Column("spent_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'finished', 'out_of_budget', 'stopped', 'failed', 'stalled', "
            "'skipped', 'missed')",
            name="firings_state_known",
        ),
        sa.CheckConstraint("generation >= 1", name="firings_generation_from_one"),
        sa.CheckConstraint("missed >= 0 AND attempts >= 0", name="firings_counts_not_negative"),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (ended_at IS NULL)", name="firings_ended_when_over"
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL)", name="firings_leased_while_running"
        ),
        sa.CheckConstraint(
            "(state = 'running') = (beaten_at IS NOT NULL)", name="firings_beaten_while_running"
        ),
        sa.CheckConstraint(
            "state NOT IN ('failed', 'stalled', 'skipped', 'missed') OR reason IS NOT NULL",
            name="firings_reason_given",
        ),
        sa.CheckConstraint("spent_seconds >= 0 AND spent_seconds < 'Infinity'", name="firings_spent_finite"),
        sa.CheckConstraint(
            "budget_seconds > 0 AND budget_seconds < 'Infinity'", name="firings_budget_positive"
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["shoal.schedules.id"], name="firings_schedule_id_exists", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="firings_pk"),
        sa.UniqueConstraint("schedule_id", "scheduled_for", name="firings_schedule_id_scheduled_for_unique"),
        sa.UniqueConstraint("schedule_id", "generation", name="firings_schedule_id_generation_unique"),
        schema="shoal",
    )
    op.create_index(
        "firings_one_running_per_schedule",
        "firings",
        ["schedule_id"],
        unique=True,
        schema="shoal",
        postgresql_where=sa.text("state = 'running'"),
    )


def _make_notices() -> None:
    op.create_table(
        "notices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("firing_id", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("given_up_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint("sent_at IS NULL OR given_up_at IS NULL", name="notices_ended_once"),
        sa.CheckConstraint("tries >= 0", name="notices_tries_not_negative"),
        sa.ForeignKeyConstraint(
            ["firing_id"], ["shoal.firings.id"], name="notices_firing_id_exists", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="notices_pk"),
        sa.UniqueConstraint("firing_id", name="notices_firing_id_unique"),
        schema="shoal",
    )
    op.create_index(
        "notices_waiting",
        "notices",
        ["next_try_at"],
        unique=False,
        schema="shoal",
        postgresql_where=sa.text("sent_at IS NULL AND given_up_at IS NULL"),
    )
