"""Patience with a database that is away, full or busy: what is tried again, how often and for how long."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import TypeVar

from storage.errors import DatabaseBusy, DatabaseFull, DatabaseUnreachable

T = TypeVar("T")

PATIENCE_VARIABLE = "SHOAL_DATABASE_PATIENCE"
PATIENCE = 60.0
"""Seconds for which a database that was there before may be away."""
FULL_TIMES = 5.0
"""So many times as long a server may be full: it answers, so it is there, and one's turn comes. Where
hundreds of processes begin at once, that takes minutes for the last."""
SHORTEST_WAIT, LONGEST_WAIT = 0.02, 2.0
"""Seconds; the wait doubles from one to the other."""


class Tally:
    """What this process has been through; only ever grows."""

    def __init__(self) -> None:
        self.waits = 0
        """Tries that followed one in which the database was away, full or busy."""


tally = Tally()


def patience() -> float:
    """Seconds to wait for the database; `SHOAL_DATABASE_PATIENCE` overrides the default."""
    given = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(given)
    except ValueError:
        return PATIENCE
    return seconds if math.isfinite(seconds) and seconds >= 0 else PATIENCE


def pauses(seconds: float) -> Iterator[None]:
    """Yields before every further try until `seconds` have passed, after a wait that grows.

    Exponential with full jitter, so that many who were refused together don't come back together.
    """
    end, wait = monotonic() + seconds, SHORTEST_WAIT
    while (left := end - monotonic()) > 0:
        sleep(min(random.uniform(0, wait) + SHORTEST_WAIT / 2, left))
        wait = min(wait * 2, LONGEST_WAIT)
        tally.waits += 1
        yield


def retrying(work: Callable[[bool], T], seconds: float) -> T:
    """Do work that may safely be done twice, again while the database is away or busy.

    `work` is told whether an earlier try may have been done although its answer was lost: not
    after a deadlock, which the server rolled back.
    """
    unsure = False
    tries = pauses(seconds)
    while True:
        try:
            return work(unsure)
        except DatabaseFull:
            raise  # it has been waited for, by whoever wanted the connection
        except DatabaseUnreachable as error:
            if not error.retryable or next(tries, error) is error:
                raise
            unsure = unsure or not isinstance(error, DatabaseBusy)
