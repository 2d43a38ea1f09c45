"""Launches: each submission of an experiment to a cluster."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "launches",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("submission", sa.String(length=256), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), server_default="submitted", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column(
            "submitted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("generation >= 1", name="launches_generation_from_one"),
        sa.CheckConstraint(
            "state IN ('submitted', 'running', 'finished', 'stopped', 'failed', 'lost')",
            name="launches_state_known",
        ),
        sa.CheckConstraint(
            "(state IN ('submitted', 'running')) = (ended_at IS NULL)", name="launches_ended_when_over"
        ),
        sa.CheckConstraint("exit_code IS NULL OR ended_at IS NOT NULL", name="launches_exit_code_at_the_end"),
        sa.CheckConstraint("submission <> '' AND address <> ''", name="launches_place_given"),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["shoal.experiments.id"],
            name="launches_experiment_id_exists",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="launches_pk"),
        sa.UniqueConstraint("experiment_id", "generation", name="launches_experiment_id_generation_unique"),
        sa.UniqueConstraint("submission", name="launches_submission_unique"),
        schema="shoal",
    )
