"""Programs: how trials of a kind train on a kind of device, decided once for an experiment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "programs",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("program", sa.Text(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("fused", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("fused_rate", sa.Double(), nullable=True),
        sa.Column("alone_rate", sa.Double(), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("fused = (reason IS NULL)", name="programs_reason_if_alone"),
        sa.CheckConstraint("batch >= 1 AND slots >= 1 AND rows >= 1", name="programs_sizes_from_one"),
        sa.CheckConstraint("fused_rate >= 0 AND fused_rate < 'Infinity'", name="programs_fused_rate_finite"),
        sa.CheckConstraint("alone_rate >= 0 AND alone_rate < 'Infinity'", name="programs_alone_rate_finite"),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["shoal.experiments.id"],
            name="programs_experiment_id_exists",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="programs_pk"),
        sa.UniqueConstraint(
            "experiment_id",
            "program",
            "batch",
            "device",
            name="programs_experiment_id_program_batch_device_unique",
        ),
        schema="shoal",
    )
