"""One message for all that a worker says at once: the statements that this takes, and their values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from storage import write_rows as rows
from storage import write_statements as writes
from storage.ledger import Draw, Ending, EpochWrite, Lease
from storage.values import numbers


@dataclass(frozen=True, slots=True)
class Message:
    """Statements that are sent together, and the values that they name."""

    script: str
    values: dict[str, Any]


def message_of(
    beats: Iterable[Lease], draws: Sequence[Draw], epochs: Sequence[EpochWrite], endings: Sequence[Ending]
) -> Message | None:
    """What stores all of it; None where there is nothing to say.

    Its values lack those that don't come from what was said: `ttl`, `most` and `write`.
    Raises `ValueRefused`.
    """
    said = rows.said_by_token(beats, draws, epochs, endings)
    if not said:
        return None
    cuts = any(ending.lease.last_step is not None for ending in endings)
    if not cuts:  # only running attempts are cut, so those are closed afterwards
        for ending in endings:
            said[ending.lease.token] |= rows.closing(ending)
    parts = (
        Message(
            writes.HOLD + writes.FENCE, {"tokens": numbers(said), "said": json.dumps(list(said.values()))}
        ),
        *_drawn(draws),
        *_noted(draws, endings),
        *_reported(epochs),
        *_ended(endings, cuts=cuts),
        Message(writes.REFUSED, {}),
    )
    return Message(
        "".join(part.script for part in parts),
        {name: value for part in parts for name, value in part.values.items()},
    )


def unless_written(
    script: str,
    draws: Sequence[Draw],
    epochs: Sequence[EpochWrite],
    endings: Sequence[Ending],
    *,
    blank: Collection[int],
) -> str:
    """The script without looking for what may be there already, as far as nothing can be.

    `blank`: tokens of new trials that nobody has drawn yet.
    """
    if {draw.lease.token for draw in draws} <= set(blank) and not any(e.attributes for e in endings):
        script = writes.of_new_trials(script)
    saying: list[EpochWrite | Ending] = [*epochs, *endings]
    if all(said.lease.attempt == 1 for said in saying):
        script = writes.of_first_attempts(script)
    return script


def _drawn(draws: Sequence[Draw]) -> Iterable[Message]:
    if draws:
        drawn = numbers(draw.lease.token for draw in draws)
        yield Message(writes.DRAW, rows.draw_columns(draws) | {"drawn": drawn})


def _noted(draws: Sequence[Draw], endings: Sequence[Ending]) -> Iterable[Message]:
    if notes := rows.note_rows(draws, endings):
        yield Message(writes.NOTE, {"notes": json.dumps(notes)})


def _reported(epochs: Sequence[EpochWrite]) -> Iterable[Message]:
    if epochs:
        yield Message(writes.REPORT + writes.POINTS, {"epochs": json.dumps(rows.epoch_rows(epochs))})


def _ended(endings: Sequence[Ending], *, cuts: bool) -> Iterable[Message]:
    """`cuts`: curves may hold epochs of earlier attempts that go before the trials end and are closed."""
    if not endings:
        return
    if readings := rows.reading_rows(endings):
        yield Message(writes.READ, {"readings": json.dumps(readings)})
    if cuts:
        yield Message(writes.CUT, {})
    yield Message(
        writes.end({ending.state for ending in endings}, closes=cuts),
        {"endings": json.dumps([rows.ending_row(ending) for ending in endings])},
    )
