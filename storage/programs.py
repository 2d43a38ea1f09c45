"""How trials of a kind train: decided once per experiment and kind of device, and remembered.

The first writer decides the way. What memory had room for may only shrink, so that two workers that write at
once need not know of each other.
"""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import ExperimentNotFound
from storage.records import ProgramRecord
from storage.sqlstates import FOREIGN_KEY_VIOLATION, sqlstate

COLUMNS = "program, batch, device, fused, reason, fused_rate, alone_rate, slots, rows"

GET = f"""
SELECT {COLUMNS} FROM shoal.programs
WHERE experiment_id = :experiment_id AND program = :program AND batch = :batch AND device = :device
"""  # noqa: S608 (here and below: only our own constants are put in)

# LEAST passes over NULLs.
PUT = f"""
INSERT INTO shoal.programs AS held
    (experiment_id, program, batch, device, fused, reason, fused_rate, alone_rate, slots, rows)
VALUES (:experiment_id, :program, :batch, :device, :fused, :reason, :fused_rate, :alone_rate, :slots, :rows)
ON CONFLICT (experiment_id, program, batch, device) DO UPDATE
SET slots = LEAST(held.slots, excluded.slots), rows = LEAST(held.rows, excluded.rows)
RETURNING {COLUMNS}
"""  # noqa: S608

PRECISION = "precision"
"""In the place of a program: what is decided is the precision of all programs, kept as the reason."""

CONVOLUTIONS = "convolutions "
"""Before a program: what is decided is how its convolutions are computed, kept as the reason."""

ALL = f"""
SELECT {COLUMNS} FROM shoal.programs
WHERE experiment_id = :id AND program <> '{PRECISION}' AND NOT starts_with(program, '{CONVOLUTIONS}')
ORDER BY id
"""  # noqa: S608

PRECISIONS = (
    f"SELECT device, reason FROM shoal.programs WHERE experiment_id = :id AND program = '{PRECISION}'"  # noqa: S608
)


class Programs:
    """Reads and writes what was decided. May be shared by threads; what breaks is tried again."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, experiment_id: int, program: str, batch: int, device: str) -> ProgramRecord | None:
        """What was decided; None if nothing was."""
        values = {"experiment_id": experiment_id, "program": program, "batch": batch, "device": device}

        def work(_: bool) -> ProgramRecord | None:
            with self.database.begin() as connection:
                row = connection.execute(text(GET), values).mappings().one_or_none()
                return None if row is None else ProgramRecord(**row)

        return self.database.retrying(work)

    def put(self, experiment_id: int, proposed: ProgramRecord) -> ProgramRecord:
        """Propose a decision; returns what holds. Raises `ExperimentNotFound`.

        A decision that is there stays as it is, but for slots and rows, of which the fewest hold.
        """
        values = {"experiment_id": experiment_id, **asdict(proposed)}

        def work(_: bool) -> ProgramRecord:
            with self.database.begin() as connection:
                return ProgramRecord(**connection.execute(text(PUT), values).mappings().one())

        try:
            return self.database.retrying(work)
        except IntegrityError as error:
            if sqlstate(error) != FOREIGN_KEY_VIOLATION:
                raise
        raise ExperimentNotFound(f"there is no experiment with id {experiment_id}")

    def of_experiment(self, experiment_id: int) -> list[ProgramRecord]:
        """All decisions on which way an experiment's trials train, oldest first."""
        with self.database.begin() as connection:
            return [
                ProgramRecord(**row)
                for row in connection.execute(text(ALL), {"id": experiment_id}).mappings()
            ]

    def precisions(self, experiment_id: int) -> dict[str, str]:
        """Kind of device → the precision that an experiment's trials are computed in there."""
        with self.database.begin() as connection:
            rows = connection.execute(text(PRECISIONS), {"id": experiment_id}).all()
        return {str(device): str(reason) for device, reason in rows}
