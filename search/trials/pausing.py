"""Which trials of a study rest at a rung, which of them may go on, and which may be taken of the queue.

A trial that pauses is given back after an epoch at which there is a rung: it waits in Optuna's table, with
its checkpoint where the next worker looks. Nothing else says that it rests, so there is nothing that a
process which dies could leave half done: a trial that was promoted and lost its worker before its next
epoch rests again where it did, and is promoted again if it still deserves it. One that was lost between two
rungs has been promoted, and goes on before anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from optuna.trial import TrialState

from search.pruning.rungs import RungTable
from search.trials.placing import is_at_rest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from search.pruning.promotion import AshaPromotion
    from search.trials.placing import Limits, Load, Starts


Kind: TypeAlias = Literal["fresh", "interrupted", "resting", "running", "foreign"]
"""Of a trial that has not ended: nobody has begun it; it waits between two rungs; it rests at one; a worker
of ours has it, or another client of Optuna's."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found of a trial; it holds for as long as the storage shows the same object."""

    trial: FrozenTrial
    kind: Kind
    step: int
    """Epochs that it has trained."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The waiting trials of a study, by number, each part in the order in which it goes on."""

    interrupted: tuple[int, ...] = ()
    """Those that were given back or lost between two rungs."""
    promoted: tuple[int, ...] = ()
    """Those that rest, and may go on now."""
    fresh: tuple[int, ...] = ()
    """Those that nobody has begun."""
    resting: tuple[int, ...] = ()
    """All that rest, promoted ones among them."""

    def taken(self, starts: Starts) -> list[int]:
        """Which of them start."""
        begun = (*self.interrupted, *self.fresh)
        return [*begun[: starts.waiting], *self.promoted[: starts.promoted]]


class Pausing:
    """The trials of one study that pause. One thread at a time.

    Of thousands that rest few have changed from one claim to the next, and only those are looked at again.
    `is_ours` says of a running trial's user attributes whether one of our workers runs it.
    """

    def __init__(
        self, rule: AshaPromotion, limits: Limits, is_ours: Callable[[Mapping[str, Any]], bool]
    ) -> None:
        self.rule = rule
        self._limits = limits
        self._is_ours = is_ours
        self._table = RungTable()
        self._seen: dict[int, _Seen] = {}
        """Trials that have not ended, by number."""
        self.queue = Queue()
        """As of the last `load`."""

    def rests(self, trial: FrozenTrial) -> bool:
        """Whether a trial rests at a rung."""
        return rests(self.rule, trial)

    def load(self, load: Load, trials: Sequence[FrozenTrial]) -> Load:
        """A study's load where trials pause, given the `load` that it would have if none did."""
        self._table.update(trials)
        self._look()
        steps = [one.step for one in self._seen.values() if one.kind in ("running", "interrupted")]
        interrupted, resting = self._numbers("interrupted"), self._numbers("resting")
        found = replace(
            load,
            interrupted=len(interrupted),
            paused=len(resting),
            committed=load.epochs + sum(self.rule.pause_after(step) - step for step in steps),
        )
        promotions = self.rule.promotions(self._table, resting)
        if not promotions and is_at_rest(found, self._limits) and not any(map(_may_win, trials)):
            promotions = [best] if (best := self.rule.furthest(self._table, resting)) else []
        self.queue = Queue(
            interrupted=interrupted,
            promoted=tuple(one.number for one in promotions),
            fresh=self._numbers("fresh"),
            resting=resting,
        )
        return replace(found, promotable=tuple(one.until - one.rung for one in promotions))

    def _look(self) -> None:
        """Find out what the trials are that the storage shows as others than before."""
        before, self._seen = self._seen, {}
        for number, trial in self._table.open.items():
            known = before.get(number)
            self._seen[number] = known if known is not None and known.trial is trial else self._look_at(trial)

    def _look_at(self, trial: FrozenTrial) -> _Seen:
        step = trial.last_step or 0
        if trial.state != TrialState.WAITING:
            return _Seen(trial, "running" if self._is_ours(trial.user_attrs) else "foreign", step)
        if not trial.params:
            return _Seen(trial, "fresh", step)
        return _Seen(trial, "resting" if self.rule.rests_at(step) else "interrupted", step)

    def _numbers(self, kind: Kind) -> tuple[int, ...]:
        return tuple(number for number, one in self._seen.items() if one.kind == kind)


def rests(rule: AshaPromotion, trial: FrozenTrial) -> bool:
    """Whether a trial rests at a rung."""
    if trial.state != TrialState.WAITING or not trial.params:
        return False
    return rule.rests_at(trial.last_step or 0)


def _may_win(trial: FrozenTrial) -> bool:
    """Whether a trial was trained to its end, and didn't diverge."""
    return trial.state == TrialState.COMPLETE and not trial.user_attrs.get("diverged", False)
