"""The foundation: experiments, their studies, workers, attempts, curves, readings of the test set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

REFUSE_CHANGE = """
CREATE FUNCTION shoal.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'readings of the test set are never changed or deleted'
        USING ERRCODE = 'restrict_violation';
END $$
"""
APPEND_ONLY = """
CREATE TRIGGER test_readings_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON shoal.test_readings
FOR EACH STATEMENT EXECUTE FUNCTION shoal.refuse_change()
"""


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("space_hash", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="created", nullable=False),
        sa.Column("stop_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("name <> ''", name="experiments_name_given"),
        sa.CheckConstraint(
            "state IN ('created', 'running', 'stopped', 'finished', 'failed')", name="experiments_state_known"
        ),
        sa.PrimaryKeyConstraint("id", name="experiments_pk"),
        sa.UniqueConstraint("name", name="experiments_name_unique"),
        schema="shoal",
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("process", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="workers_pk"),
        schema="shoal",
    )
    op.create_table(
        "experiment_studies",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("method", sa.String(length=128), nullable=False),
        sa.Column("replicate", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.CheckConstraint("name <> '' AND method <> ''", name="experiment_studies_names_given"),
        sa.CheckConstraint("replicate >= 0", name="experiment_studies_replicate_not_negative"),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["shoal.experiments.id"],
            name="experiment_studies_experiment_id_exists",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="experiment_studies_pk"),
        sa.UniqueConstraint(
            "experiment_id",
            "method",
            "replicate",
            name="experiment_studies_experiment_id_method_replicate_unique",
        ),
        sa.UniqueConstraint("name", name="experiment_studies_name_unique"),
        schema="shoal",
    )
    op.create_table(
        "test_readings",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("study_name", sa.String(length=512), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("validation", sa.JSON(), nullable=False),
        sa.Column("epochs", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("seconds >= 0 AND seconds < 'Infinity'", name="test_readings_seconds_finite"),
        sa.CheckConstraint("epochs >= 1 AND images >= 1", name="test_readings_something_read"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["shoal.experiments.id"], name="test_readings_experiment_id_exists"
        ),
        sa.PrimaryKeyConstraint("id", name="test_readings_pk"),
        schema="shoal",
    )
    op.create_index(
        "test_readings_experiment_id_index", "test_readings", ["experiment_id"], unique=False, schema="shoal"
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="running", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (ended_at IS NULL)", name="attempts_ended_when_not_running"
        ),
        sa.CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="attempts_failed_with_reason"),
        sa.CheckConstraint(
            "state IN ('running', 'complete', 'pruned', 'failed', 'released', 'lost')",
            name="attempts_state_known",
        ),
        sa.CheckConstraint("number >= 1", name="attempts_number_from_one"),
        sa.CheckConstraint("trial_number >= 0", name="attempts_trial_number_not_negative"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["shoal.experiment_studies.id"], name="attempts_study_id_exists", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["shoal.workers.id"], name="attempts_worker_id_exists"),
        sa.PrimaryKeyConstraint("id", name="attempts_pk"),
        sa.UniqueConstraint("trial_id", "number", name="attempts_trial_id_number_unique"),
        schema="shoal",
    )
    op.create_index(
        "attempts_one_running_per_trial",
        "attempts",
        ["trial_id"],
        unique=True,
        schema="shoal",
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("attempts_study_id_index", "attempts", ["study_id"], unique=False, schema="shoal")
    op.create_table(
        "epochs",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("validation_loss", sa.Double(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("gradient_norm", sa.Double(), nullable=True),
        sa.Column("learning_rate", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("images_per_second", sa.Double(), nullable=False),
        sa.Column("diverged", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "gradient_norm >= 0 AND gradient_norm < 'Infinity'", name="epochs_gradient_norm_finite"
        ),
        sa.CheckConstraint(
            "images_per_second >= 0 AND images_per_second < 'Infinity'",
            name="epochs_images_per_second_finite",
        ),
        sa.CheckConstraint(
            "learning_rate > '-Infinity' AND learning_rate < 'Infinity'", name="epochs_learning_rate_finite"
        ),
        sa.CheckConstraint("seconds >= 0 AND seconds < 'Infinity'", name="epochs_seconds_finite"),
        sa.CheckConstraint(
            "train_loss > '-Infinity' AND train_loss < 'Infinity'", name="epochs_train_loss_finite"
        ),
        sa.CheckConstraint(
            "validation_loss > '-Infinity' AND validation_loss < 'Infinity'",
            name="epochs_validation_loss_finite",
        ),
        sa.CheckConstraint("epoch >= 1", name="epochs_epoch_from_one"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["shoal.experiment_studies.id"], name="epochs_study_id_exists", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["trial_id", "attempt"],
            ["shoal.attempts.trial_id", "shoal.attempts.number"],
            name="epochs_trial_id_attempt_exists",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trial_id", "epoch", name="epochs_pk"),
        schema="shoal",
    )
    op.create_index("epochs_study_id_index", "epochs", ["study_id"], unique=False, schema="shoal")
    op.execute(REFUSE_CHANGE)
    op.execute(APPEND_ONLY)
