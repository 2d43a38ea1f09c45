"""What engines ask about programs, answered from the database: the `Choices` of an experiment."""

from __future__ import annotations

from dataclasses import asdict

from objectives.choices import ChoicesError, ProgramChoice, ProgramKey
from storage.database import Database
from storage.errors import StorageError
from storage.programs import Programs
from storage.records import ProgramRecord


class StoredChoices:
    """`objectives.choices.Choices`, kept with the experiment."""

    def __init__(self, database: Database, experiment_id: int) -> None:
        self._programs = Programs(database)
        self._experiment_id = experiment_id

    def get(self, key: ProgramKey) -> ProgramChoice | None:
        """As `Choices.get`."""
        try:
            found = self._programs.get(self._experiment_id, key.program, key.batch, key.device)
        except StorageError as error:
            raise ChoicesError(str(error)) from error
        return None if found is None else _choice(found)

    def put(self, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
        """As `Choices.put`."""
        try:
            held = self._programs.put(self._experiment_id, ProgramRecord(**asdict(key), **asdict(choice)))
        except StorageError as error:
            raise ChoicesError(str(error)) from error
        return _choice(held)


def _choice(record: ProgramRecord) -> ProgramChoice:
    return ProgramChoice(
        record.fused, record.reason, record.fused_rate, record.alone_rate, record.slots, record.rows
    )
