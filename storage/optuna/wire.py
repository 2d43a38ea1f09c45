"""The connection: several statements in one round trip, and another try when it turns out to be dead."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.sqlstates import UNIQUE_VIOLATION, sqlstate


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of the last statement."""

    rows: Sequence[Any]
    uncertain: bool
    """The connection broke and the statements were sent again: they may have been carried out before."""


class Wire:
    """Sends statements to the database, each call one transaction and one round trip.

    The statements of a call run in one implicit transaction, because the driver sends them as one
    message: no BEGIN and no COMMIT travel by themselves. May be shared by threads.
    """

    def __init__(self, url: str, application_name: str) -> None:
        self.database = Database(url, application_name=application_name)
        self.url = self.database.url
        self.round_trips = 0
        """Messages sent so far, without those that open a connection."""
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        return f"Wire({self.database.masked_url!r})"

    def run(
        self,
        statements: str,
        values: Sequence[Any] | Mapping[str, Any] = (),
        *,
        otherwise: str | None = None,
    ) -> Answer:
        """Run statements, of which the last gives rows, as one transaction.

        Tried again while the database is away or busy, up to its patience: the statements must be
        such that doing them twice does no harm. Raises as `Database.script`. `otherwise`: sent with the
        same values where the statements violate a UNIQUE, and have done nothing.
        """

        def send(unsure: bool) -> Answer:
            try:
                return self._send(statements, values, uncertain=unsure)
            except IntegrityError as error:
                if otherwise is None or sqlstate(error) != UNIQUE_VIOLATION:
                    raise
            return self._send(otherwise, values, uncertain=unsure)

        return self.database.retrying(send)

    def run_once(self, statements: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Answer:
        """The same for statements that must not be done twice: not tried again."""
        return self._send(statements, values, uncertain=False)

    def _send(self, statements: str, values: Sequence[Any] | Mapping[str, Any], *, uncertain: bool) -> Answer:
        with self._counting:
            self.round_trips += 1
        return Answer(self.database.script(statements, values), uncertain)

    def close(self) -> None:
        """Close the connections; using it again opens new ones."""
        self.database.close()
