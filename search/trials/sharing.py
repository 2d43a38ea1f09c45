"""Trials that other methods draw as well are trained once: the others take over what was reported of it.

Random search, TPE and Gaussian processes share their first trials within a replicate: equal values,
equal seeds, equal curves. Of such twins one is trained (`storage.twins` decides which). The others are
held here under their leases, without a slot, and their epochs are reported as they are stored of the
trained one: to their own study, judged by its own pruner, ended under their own lease. Where a twin
ends before its time (pruned earlier, failed, its worker gone) the trial is trained after all, from
where what was taken over ends. Where trials pause at rungs, each takes over no more than to where it
pauses itself, and none waits for a twin that rests. That holds for functions of the user's own as
well: equal arguments have to give equal values, so one call says what the other would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from optuna.distributions import FloatDistribution

from objectives.base import EpochReport
from search.sampling.chance import spread, unit
from search.trials.claims import Claim, Reported, Shared, Verdict
from search.trials.starting import after_replay
from storage.twins import Asked

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from objectives.base import Scalar
    from storage.curves import Report
    from storage.twins import Found, Twins

LOOK_SECONDS = 0.25
"""Between two looks at what trained twins have reported; at once where one ended in this process."""


@dataclass(slots=True)
class _Held:
    """A trial that has twins, or may have."""

    claim: Claim
    first: int
    """The first epoch that may be taken over."""
    known: int
    """The last epoch that is stored, or was found since."""
    undecided: bool = True
    """Nobody has looked for its twins yet, or all that they had is taken over."""
    leader: int | None = None
    """The twin that is trained, by Optuna's id."""
    study_name: str = ""
    complete: bool = False
    """Whether the last of `points` was the last of the twin's training."""
    points: list[Report] = field(default_factory=list)
    """What is still to be taken over."""
    told: int = 0
    """The last epoch that was taken over; 0: none."""
    waits: bool = False
    """For the verdict on it."""

    def asked(self) -> Asked:
        """What its twins are looked for by."""
        assert self.claim.common is not None
        return Asked(self.claim.lease.token, self.claim.common, self.claim.start.seed, self.known)


class Sharing:
    """The trials of one worker that may be shared. One thread.

    `judged`: whether an epoch may end a trial, so that each is judged before the next is reported.
    """

    def __init__(self, twins: Twins, *, judged: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._twins = twins
        self._judged = judged
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._free: dict[int, Claim] = {}
        self._next_look = clock()

    def __len__(self) -> int:
        return len(self._held) + len(self._free)

    @property
    def has_free(self) -> bool:
        """Whether a trial that was kept is to be trained here after all, and waits for `freed`."""
        return bool(self._free)

    def sift(self, claims: Iterable[Claim]) -> list[Claim]:
        """Keep those that may have a twin; the others."""
        others = []
        for claim in claims:
            if claim.common is None:
                others.append(claim)
                continue
            stored = claim.lease.last_step or 0
            self._held[claim.lease.token] = _Held(claim, first=stored + 1, known=stored)
        return others

    def freed(self, wanted: int) -> list[Claim]:
        """Up to so many of those that were kept and are to be trained here. Raises `DatabaseUnreachable`."""
        if any(held.undecided for held in self._held.values()):
            self._look()
        tokens = list(self._free)[:wanted]
        return [self._free.pop(token) for token in tokens]

    def replay(self) -> list[Reported]:
        """What can be taken over now, epoch by epoch if each is judged. Raises `DatabaseUnreachable`."""
        if self.seconds_to_look() <= 0:
            self._look()
        reported = []
        for held in self._held.values():
            if held.points and not held.waits:
                count = 1 if self._judged else len(held.points)
                reported += [_taken_over(held) for _ in range(count)]
                held.waits = True
        return reported

    def seconds_to_replay(self) -> float:
        """Until there may be something to take over; infinite if nothing is held."""
        ready = any(held.points and not held.waits for held in self._held.values())
        return 0.0 if ready else self.seconds_to_look()

    def seconds_to_look(self) -> float:
        """Until twins are to be looked at again."""
        if any(held.undecided for held in self._held.values()):
            return 0.0
        idle = any(not held.points and not held.waits for held in self._held.values())
        return max(0.0, self._next_look - self._clock()) if idle else math.inf

    def heard(self, verdicts: Mapping[int, Verdict]) -> None:
        """Take note of what became of trials after what `replay` gave; of others as well."""
        for token in verdicts.keys() & self._held.keys():
            if verdicts[token] is not Verdict.CONTINUE:
                del self._held[token]
                continue
            held = self._held[token]
            held.waits = False
            # Where nobody is waited for, it is decided anew: to go on with, or alone.
            held.undecided = not held.points and held.leader is None

    def ended(self, trial_id: int) -> None:
        """A trial of this worker ended or went back: who followed it needs to look."""
        if any(held.leader == trial_id for held in self._held.values()):
            self._next_look = self._clock()

    def drop(self, tokens: Collection[int]) -> None:
        """Forget trials whose leases were lost."""
        for token in tokens:
            self._held.pop(token, None)
            self._free.pop(token, None)

    def leave(self) -> list[Claim]:
        """Give up all: they are to be given back."""
        claims = [*(held.claim for held in self._held.values()), *self._free.values()]
        self._held, self._free = {}, {}
        return claims

    def _look(self) -> None:
        """Find out what twins have, and who leads. Nothing is heard of leases that were lost."""
        asked = [held for held in self._held.values() if not held.points and not held.waits]
        self._next_look = self._clock() + LOOK_SECONDS
        found = self._twins.look(held.asked() for held in asked)
        for held in asked:
            token = held.claim.lease.token
            if token in found:
                self._take_in(held, found[token])
            held.undecided = False

    def _take_in(self, held: _Held, found: Found) -> None:
        until = held.claim.until
        points = [point for point in found.points if until is None or point.epoch <= until]
        held.leader = found.leader
        held.complete = found.complete and len(points) == len(found.points)
        if points:
            held.study_name = found.study_name or ""
            held.points = points
            held.known = points[-1].epoch
        elif found.leader is None:
            token = held.claim.lease.token
            del self._held[token]
            self._free[token] = (
                after_replay(held.claim, held.first, held.told, held.study_name) if held.told else held.claim
            )


def _taken_over(held: _Held) -> Reported:
    """The next epoch, as if an engine had reported it."""
    point = held.points.pop(0)
    held.told = point.epoch
    claim = replace(held.claim, shared=Shared(held.study_name, point.epoch - held.first + 1))
    report = EpochReport(
        epoch=point.epoch,
        train_loss=point.train_loss,
        validation_loss=point.validation_loss,
        metrics=point.metrics,
        gradient_norm=point.gradient_norm,
        learning_rate=point.learning_rate,
        seconds=point.seconds,
        images_per_second=point.images_per_second,
        diverged=point.diverged,
    )
    last = point.epoch >= claim.start.config.epochs or (held.complete and not held.points)
    return Reported(claim, report, last)


def may_be_common(
    values: Mapping[str, Scalar], kinds: Mapping[str, BaseDistribution], *seed_parts: int | str
) -> bool:
    """Whether several methods may have drawn the values, for what `seed_parts` name.

    They have where they are those that every method begins with; and may have by chance where each
    comes from a dimension whose values can be counted.
    """
    drawn = {name: kinds[name] for name in values}
    return all(map(_is_countable, drawn.values())) or all(
        values[name] == spread(unit(*seed_parts, name), kind) for name, kind in drawn.items()
    )


def _is_countable(kind: BaseDistribution) -> bool:
    return not isinstance(kind, FloatDistribution) or kind.step is not None or kind.single()
