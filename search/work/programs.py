"""What engines ask about programs, answered from the database: the `Choices` of an experiment."""

from __future__ import annotations

from dataclasses import asdict

from objectives.choices import ChoicesError, ProgramChoice, ProgramKey
from storage.database import Database
from storage.errors import StorageError
from storage.programs import CONVOLUTIONS, Programs
from storage.records import ProgramRecord

SEPARATOR = ", "
"""Between the names of convolutions' backends, in the place of a reason."""


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
            held = self._programs.put(self._experiment_id, _record(key, choice))
        except StorageError as error:
            raise ChoicesError(str(error)) from error
        return _choice(held)


def _record(key: ProgramKey, choice: ProgramChoice) -> ProgramRecord:
    values = {name: value for name, value in asdict(choice).items() if name != "convolutions"}
    if choice.convolutions is not None:
        values |= {"fused": False, "reason": SEPARATOR.join(choice.convolutions)}
    return ProgramRecord(**asdict(key), **values)


def _choice(record: ProgramRecord) -> ProgramChoice:
    if record.program.startswith(CONVOLUTIONS):
        names = record.reason.split(SEPARATOR) if record.reason else ()
        return ProgramChoice(fused=True, convolutions=tuple(names), slots=record.slots, rows=record.rows)
    return ProgramChoice(
        record.fused, record.reason, record.fused_rate, record.alone_rate, record.slots, record.rows
    )
