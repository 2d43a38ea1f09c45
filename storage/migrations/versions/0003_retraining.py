"""Retraining: studies in which winners are trained again, and the readings of the test set they give."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Give studies a role, and readings a purpose."""
    op.add_column(
        "experiment_studies",
        sa.Column("role", sa.Text(), server_default="search", nullable=False),
        schema="shoal",
    )
    op.create_check_constraint(
        "experiment_studies_role_known",
        "experiment_studies",
        "role IN ('search', 'retraining')",
        schema="shoal",
    )
    op.drop_constraint(
        "experiment_studies_experiment_id_method_replicate_unique", "experiment_studies", schema="shoal"
    )
    op.create_unique_constraint(
        "experiment_studies_experiment_id_method_replicate_role_unique",
        "experiment_studies",
        ["experiment_id", "method", "replicate", "role"],
        schema="shoal",
    )
    # A default fills the rows that are there without changing any of them, which a trigger would refuse.
    op.add_column(
        "test_readings",
        sa.Column("purpose", sa.Text(), server_default="score", nullable=False),
        schema="shoal",
    )
    op.add_column(
        "test_readings", sa.Column("retraining_trial_id", sa.Integer(), nullable=True), schema="shoal"
    )
    op.create_check_constraint(
        "test_readings_purpose_known", "test_readings", "purpose IN ('score', 'retraining')", schema="shoal"
    )
    op.create_check_constraint(
        "test_readings_retraining_named",
        "test_readings",
        "(purpose = 'retraining') = (retraining_trial_id IS NOT NULL)",
        schema="shoal",
    )
    op.drop_constraint("test_readings_something_read", "test_readings", schema="shoal")
    op.create_check_constraint(
        "test_readings_something_read",
        "test_readings",
        "epochs >= 1 AND images >= CASE purpose WHEN 'score' THEN 1 ELSE 0 END",
        schema="shoal",
    )
    op.create_index(
        "test_readings_one_per_retraining",
        "test_readings",
        ["trial_id", "seed"],
        unique=True,
        schema="shoal",
        postgresql_where=sa.text("purpose = 'retraining'"),
    )
