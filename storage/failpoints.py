"""Failpoints: places where a test lets a process die or an operation fail, at an exact moment.

Active only where the environment says so: `SHOAL_FAILPOINTS="ledger.write.committed:kill@2,other:raise"`
kills the process the second time that it comes to the first place, and raises at every visit of
the other. Costs one dictionary look-up where nothing is set.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

VARIABLE = "SHOAL_FAILPOINTS"


class FailpointError(RuntimeError):
    """What the action `raise` raises."""


@dataclass(frozen=True, slots=True)
class _Order:
    action: str
    nth: int | None
    """The visit at which it acts, from 1; None: at each."""


def failpoint(name: str) -> None:
    """Come to the failpoint of that name. Raises `KeyError` for a name that isn't in `FAILPOINTS`."""
    orders = _orders(os.environ.get(VARIABLE, ""))
    if not orders:
        return
    if name not in FAILPOINTS:
        raise KeyError(f"there is no failpoint {name!r}")
    order = orders.get(name)
    if order is None:
        return
    with _guard:
        _visits[name] += 1
        reached = _visits[name]
    if order.nth in (None, reached):
        ACTIONS[order.action](name)


def forget_visits() -> None:
    """Count from the beginning again, for tests within one process."""
    with _guard:
        _visits.clear()


def _orders(said: str) -> Mapping[str, _Order]:
    if not said:
        return {}
    if said not in _read:
        _read.clear()
        _read[said] = dict(map(_order, said.split(",")))
    return _read[said]


def _order(said: str) -> tuple[str, _Order]:
    name, _, action = said.strip().partition(":")
    action, at, nth = action.partition("@")
    if name not in FAILPOINTS or action not in ACTIONS or (at and not nth.isdecimal()):
        raise ValueError(
            f"${VARIABLE} says {said!r}; an order looks like `name:kill@2`, the names are "
            f"{', '.join(FAILPOINTS)}, the actions {', '.join(ACTIONS)}"
        )
    return name, _Order(action, int(nth) if at else None)


def _kill(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may take a moment; nothing after this line must happen


def _raise(name: str) -> None:
    raise FailpointError(f"failpoint {name}")


def _stop(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


_guard = threading.Lock()
_visits: Counter[str] = Counter()
_read: dict[str, dict[str, _Order]] = {}

ACTIONS: dict[str, Callable[[str], None]] = {"kill": _kill, "raise": _raise, "stop": _stop}

FAILPOINTS: dict[str, str] = {
    "ledger.claim.committed": "after a claim was committed, before the worker knows of it",
    "ledger.write.before": "before a write is sent",
    "ledger.write.committed": "after a write was committed, before the worker knows of it",
    "ledger.expire.committed": "after leases were taken back, before the caller knows of it",
    "ledger.retry.committed": "after failed trials were put in the queue again, before the caller knows",
    "retraining.noted": "the study of a winner's retraining is noted, but not in Optuna's tables yet",
    "retraining.made": "the study of a winner's retraining is in Optuna's tables, without its trials",
    "stock.claim.made": "the stock ledger has made a waiting trial, which nobody has claimed yet",
    "stock.claim.begun": "the stock ledger has stored an attempt; its trial is not RUNNING yet",
    "stock.write.told": "the stock ledger has ended a trial; its attempt is not ended yet",
}
"""Name → where it is."""
