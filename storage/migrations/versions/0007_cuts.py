"""Cutting curves: the one thing that workers delete, as a function, so that their role needs no right to."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

CUT = """
CREATE FUNCTION shoal.cut_curves(tokens bigint[], reports boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM shoal.epochs AS point USING shoal.attempts AS attempt
    WHERE attempt.token = ANY(tokens) AND attempt.state = 'running' AND attempt.last_step IS NOT NULL
      AND point.trial_id = attempt.trial_id AND point.epoch > attempt.last_step
      AND point.attempt < attempt.number;
    IF reports THEN
        DELETE FROM trial_intermediate_values AS point USING shoal.attempts AS attempt
        WHERE attempt.token = ANY(tokens) AND attempt.state = 'running' AND attempt.last_step IS NOT NULL
          AND attempt.number > 1 AND point.trial_id = attempt.trial_id AND point.step > attempt.last_step;
    END IF;
END $$
"""
"""Of running attempts: what earlier attempts of their trials reported beyond their own last epoch.

With the rights of the tables' owner. `reports`: in Optuna's table as well.
"""


def upgrade() -> None:
    """Make the function; who may call it is said by `storage.roles`."""
    op.execute(CUT)
    op.execute("REVOKE ALL ON FUNCTION shoal.cut_curves(bigint[], boolean) FROM PUBLIC")
