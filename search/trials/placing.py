"""Which trials may start where, how many are asked ahead, when an engine counts as hung: pure functions.

They decide on numbers alone; `search.trials.broker` and `search.work.desk` read those numbers and do what was
decided. Numbers may be old by the time of a decision: whether a trial does start is decided again
under the study's lock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.records import StudyProgress

AHEAD_SHARE = 8
"""Of so many slots one trial at least is asked ahead, for ends that nobody foresees (pruned, diverged)."""
BURST_FILLS = 32
"""Of so many looks for free slots the one that found most ends that nobody foresaw says how many may come."""
HANG_SECONDS = 4 * 3600.0
"""After which an engine that does not come back from an epoch is given up, unless asked for otherwise."""
HANG_FACTOR = 20
"""An engine hangs if it is away for so many times its longest stay …"""
HANG_LEAST = 600.0
"""… and for so many seconds at least."""


@dataclass(frozen=True, slots=True)
class Load:
    """How far a study is."""

    trials: int
    """Trials that the budget pays for, whatever their state; repetitions of failed ones come on top."""
    running: int
    """By our workers; what other Optuna clients run is theirs, and takes none of our places."""
    interrupted: int
    """Waiting trials that have begun before: they go on first, and don't count as new."""
    fresh: int
    """Waiting trials that nobody has begun: points of a grid."""
    epochs: int
    """Epochs reported so far."""
    committed: int
    """`epochs`, and all that running and interrupted trials may still train before they end or pause."""
    paused: int = 0
    """Waiting trials that rest at a rung: see `search.trials.pausing`."""
    promotable: tuple[int, ...] = ()
    """Of each that may go on now, in their order, the epochs until it pauses next."""
    total: int | None = field(default=None, compare=False)
    """All trials, also those that the budget doesn't pay for; None: not said."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a study may have."""

    trials: int
    epochs: int | None
    """Epochs after which no new trial begins; None: no limit."""
    in_flight: int | None
    """Trials running at once; None: no limit."""
    later: bool = False
    """Its trials come after those of all studies that are not `later`."""


@dataclass(frozen=True, slots=True)
class Starts:
    """Trials that may start in a study: so many of its queue, and so many new ones."""

    waiting: int
    new: int
    promoted: int = 0
    """Of those that rest in the queue."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.waiting + self.promoted + self.new


def may_start(load: Load, limits: Limits) -> bool:
    """Whether there is something to do in a study now: a trial may start, or those that rest are to be ended.

    An interrupted trial may always go on, and one that was promoted: it was admitted before. A new one
    needs a place in the budget of trials, and epochs that aren't already promised to the trials under
    way: so workers in parallel spend no more epochs than one worker alone would.
    """
    if limits.in_flight is not None and load.running >= limits.in_flight:
        return False
    if load.interrupted or load.promotable:
        return True
    return _may_begin(load, limits) or is_at_rest(load, limits)


def _may_begin(load: Load, limits: Limits) -> bool:
    """Whether a trial that nobody has begun may start now."""
    if limits.epochs is not None and load.committed >= limits.epochs:
        return False
    return load.fresh > 0 or load.trials < limits.trials


def is_at_rest(load: Load, limits: Limits) -> bool:
    """Whether all that is left of a study are trials that rest and are never promoted: they are to end."""
    if load.running or load.interrupted or load.promotable:
        return False
    return load.paused > 0 and not _may_begin(load, limits)


def may_ever_start(load: Load, limits: Limits) -> bool:
    """Whether a trial may start or be ended now or later, provided that running ones end well.

    What rests may be promoted by what runs; and is to be ended if it isn't.
    """
    if load.interrupted or load.paused:
        return True
    if limits.epochs is not None and load.epochs >= limits.epochs:
        return False
    return load.fresh > 0 or load.trials < limits.trials


def begun(load: Load, promised: int) -> Load:
    """The load after one more trial, the next in line, has started; a new one may train so many epochs."""
    if load.interrupted:
        return replace(load, running=load.running + 1, interrupted=load.interrupted - 1)
    if load.promotable:
        until, *others = load.promotable
        return replace(
            load,
            running=load.running + 1,
            paused=load.paused - 1,
            promotable=tuple(others),
            committed=load.committed + until,
        )
    committed = load.committed + promised
    if load.fresh:
        return replace(load, running=load.running + 1, fresh=load.fresh - 1, committed=committed)
    return replace(load, running=load.running + 1, trials=load.trials + 1, committed=committed)


def starts(load: Load, limits: Limits, wanted: int, promised: int) -> Starts:
    """How many of `wanted` trials may start in a study, one after the other; `promised` as in `begun`."""
    waiting = new = promoted = 0
    while waiting + promoted + new < wanted and may_start(load, limits) and not is_at_rest(load, limits):
        if load.interrupted:
            waiting += 1
        elif load.promotable:
            promoted += 1
        elif load.fresh:
            waiting += 1
        else:
            new += 1
        load = begun(load, promised)
    return Starts(waiting, new, promoted)


def shares(
    loads: Mapping[str, Load], limits: Mapping[str, Limits], wanted: int, promised: int
) -> dict[str, int]:
    """How many trials each study is to give, the study that is furthest behind first.

    "Behind" is the share of the trials that has started, so methods and replicates advance evenly,
    and a study that may run one trial at a time gets its next as soon as the last has ended. Those
    that come `later` give what the others leave.
    Studies that are equally far come in the order of `limits`, which is the experiment's own. Where all
    that is left is to be ended, that counts as one trial.
    """
    order = {name: place for place, name in enumerate(limits)}
    left = {name: load for name, load in loads.items() if name in limits and may_start(load, limits[name])}
    found: dict[str, int] = {}
    for _ in range(wanted):
        if not left:
            break
        name = min(
            left, key=lambda name: (limits[name].later, started(left[name], limits[name]), order[name])
        )
        found[name] = found.get(name, 0) + 1
        load = left[name]
        left[name] = replace(load, paused=0) if is_at_rest(load, limits[name]) else begun(load, promised)
        if not may_start(left[name], limits[name]):
            del left[name]
    return found


def started(load: Load, limits: Limits) -> float:
    """The share of a study's trials that has started; of one without a budget, of those that it has."""
    return (load.trials - load.fresh - load.interrupted) / (limits.trials or max(load.trials, 1))


def is_decided(load: Load, limits: Limits) -> bool:
    """Whether a study's search is over for good: nothing runs, and nothing may ever start."""
    return not load.running and not may_ever_start(load, limits)


def is_over(row: StudyProgress, limits: Limits) -> bool:
    """Whether a study has begun all its trials: nothing waits, and the budget of trials is used."""
    return row.waiting == 0 and row.trials >= limits.trials


def ahead(slots: int, ending: int, burst: int = 0) -> int:
    """How many claimed trials to have ready besides those that free slots take at once.

    One for each slot whose trial trains its last epoch, and of many slots a few more for ends that
    come by surprise: as many as lately came at once (`burst`), for a pruner ends several trials of a
    rung together. With one slot that is never more than one trial, and none before it is
    needed: a trial that waits here could be running on another worker, and counts as in flight.
    """
    if slots <= 1:
        return min(ending, 1)
    return min(slots, ending + max(math.ceil(slots / AHEAD_SHARE), burst))


def hang_limit(most: float, longest: float | None) -> float:
    """Seconds after which an engine that does not come back is given up.

    `most` is the user's limit; once an epoch was seen, `longest` being its seconds, less may do.
    """
    return most if longest is None else min(most, max(HANG_LEAST, HANG_FACTOR * longest))


def suspects(held: Iterable[int], lately: Collection[int]) -> set[int]:
    """Which of the trials in an engine that hangs are held responsible.

    Those that came in since it last came back, if there are any: without them it worked.
    """
    held = set(held)
    return held & set(lately) or held


def chain_root(number: int, repeats: Sequence[int | None]) -> int:
    """The first of the trials that trial `number` repeats; `repeats[n]` is what trial n repeats, or None."""
    seen = {number}
    while number < len(repeats) and (earlier := repeats[number]) is not None:
        if earlier in seen or not 0 <= earlier < number:
            break  # written by somebody else; a repetition is newer than what it repeats
        seen.add(earlier)
        number = earlier
    return number
