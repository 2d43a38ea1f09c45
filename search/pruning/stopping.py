"""Rules of early stopping for a whole pool of trials at once, over a table of the study's values.

Each rule says what Optuna's pruner of that name would say if the trials were asked for one after
the other, without going through all trials of the study for each of them. `search.pruning.pruners` builds
them from the settings of an experiment.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from binascii import crc32
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import TypeAlias

from optuna.trial import FrozenTrial, TrialState

from search.pruning.rungs import Ranked, RungTable

Place: TypeAlias = tuple[float, float]
"""Where a trial stands at a rung: less is better. Its value, turned so, and its number."""

_NO_STEP = 2**31
"""Past every step that a database can hold."""

_MARKS = tuple(f"completed_rung_{rung}" for rung in range(32))
"""System attributes by which Optuna's successive halving knows who reached which rung, with which value."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a trial."""

    stop: bool
    marks: Mapping[str, float] = field(default_factory=dict)
    """System attributes that Optuna's own pruner would set on the trial now. Our rule does not need
    them; a client that runs Optuna's pruner on the same study counts only trials that have them."""


class PoolPruner(ABC):
    """A rule of early stopping. Holds no state: what it says depends on the table alone."""

    @abstractmethod
    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:
        """A verdict for each (trial number, step) of `asked`; the step is the trial's last one.

        The table must have been updated since the values were reported. Trials are judged in the
        order of `asked`, as if each had come after the one before. One that has reported a later
        step goes on: that step is a repetition, and was let through once. So does one that isn't
        running, or has no value at that step.
        """

    def verdicts(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether each (trial number, step) of `asked` stops: `judge` without the marks."""
        return [verdict.stop for verdict in self.judge(table, asked)]


GO_ON = Verdict(stop=False)
STOP = Verdict(stop=True)


def asked_trial(table: RungTable, number: int, step: int) -> FrozenTrial | None:
    """The trial, if there is something to judge at that step: see `PoolPruner.judge`."""
    trial = table.open.get(number)
    if trial is None or step not in trial.intermediate_values or max(trial.intermediate_values) != step:
        return None
    return trial


class NeverStop(PoolPruner):
    """Every trial trains to its end."""

    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:  # noqa: ARG002 (the interface's)
        """Go on, all of you."""
        return [GO_ON] * len(asked)


@dataclass(frozen=True, slots=True)
class Percentile(PoolPruner):
    """Optuna's `PercentilePruner`: a trial's best so far against complete trials at the same step."""

    percentile: float
    """The share of trials, in per cent, of which the worst is still good enough."""
    n_startup_trials: int
    n_warmup_steps: int
    interval_steps: int
    maximize: bool

    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:
        """See `PoolPruner.judge`."""
        if table.complete == 0 or table.complete < self.n_startup_trials:
            return [GO_ON] * len(asked)
        complete = table.ranked("complete", values_if_complete)
        share = 100 - self.percentile if self.maximize else self.percentile
        bars: dict[int, float] = {}
        verdicts = []
        for number, step in asked:
            trial = asked_trial(table, number, step)
            if trial is None or not self._is_due(step, trial):
                verdicts.append(GO_ON)
                continue
            if step not in bars:
                bars[step] = percentile_of(complete[step], share)
            best = self._best(trial)
            # A comparison with NaN is false: where no complete trial has a value, all go on.
            late = best < bars[step] if self.maximize else best > bars[step]
            verdicts.append(STOP if late or math.isnan(best) else GO_ON)
        return verdicts

    def _is_due(self, step: int, trial: FrozenTrial) -> bool:
        """Whether this is the first report since the last multiple of the interval."""
        if step < self.n_warmup_steps:
            return False
        if self.interval_steps == 1:
            return True
        before = max((other for other in trial.intermediate_values if other != step), default=-1)
        return before < step - (step - self.n_warmup_steps) % self.interval_steps

    def _best(self, trial: FrozenTrial) -> float:
        """The trial's best value; NaN if it has no other."""
        values = trial.intermediate_values.values()
        if math.isnan(sum(values)):  # a NaN, or both infinities
            numbers = [value for value in values if not math.isnan(value)]
            if not numbers:
                return math.nan
            return max(numbers) if self.maximize else min(numbers)
        return max(values) if self.maximize else min(values)


def values_if_complete(trial: FrozenTrial) -> Iterator[tuple[Hashable, float]]:
    """A complete trial's values by step, without NaN."""
    if trial.state == TrialState.COMPLETE:
        for step, value in trial.intermediate_values.items():
            if not math.isnan(value):
                yield step, value


def percentile_of(ordered: Sequence[float], percentile: float) -> float:
    """`numpy.percentile` of values that are in order already, to the last bit; NaN of none.

    NaN also where numpy's is, between infinities.
    """
    if not ordered:
        return math.nan
    position = percentile / 100 * (len(ordered) - 1)
    below = math.floor(position)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    part = position - below
    # Numpy's own formula: which end is started from decides the last bit.
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


@dataclass(frozen=True, slots=True)
class SuccessiveHalving(PoolPruner):
    """Optuna's `SuccessiveHalvingPruner`: the best of those that came to a rung before go on.

    Who came to which rung, and with which value, Optuna keeps in system attributes of the trials.
    Here they are worked out from the values where a trial has none, so that nothing is lost with
    a worker: a trial comes to a rung with its first report at that step or later. A complete
    trial's last report does not count, since pruners aren't asked after it.
    """

    min_resource: int
    reduction_factor: int
    min_early_stopping_rate: int
    maximize: bool
    bars: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The steps at which the rungs are reached."""

    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:
        """See `PoolPruner.judge`."""
        return judge_arrivals(table, asked, self, (self,), lambda _: 0)

    def __post_init__(self) -> None:
        bars = []
        bar = self.min_resource * self.reduction_factor**self.min_early_stopping_rate
        while bar < _NO_STEP:
            bars.append(bar)
            bar *= self.reduction_factor
        object.__setattr__(self, "bars", (*bars, _NO_STEP))

    def marks(self, trial: FrozenTrial, before: float = math.inf) -> list[float]:
        """The values with which a trial came to the rungs that it reached before a step.

        Those that it has as attributes are taken as they are.
        """
        attributes = trial.system_attrs
        if _MARKS[0] in attributes:
            return [attributes[mark] for mark in takewhile(attributes.__contains__, _MARKS)]
        values = trial.intermediate_values
        if trial.state == TrialState.COMPLETE and values:
            before = max(values)
        marks: list[float] = []
        for bar in self.bars:
            if bar >= before:
                break
            value = values.get(bar, math.nan)
            if math.isnan(value):
                later = [step for step in values if bar <= step < before and not math.isnan(values[step])]
                if not later:
                    break
                value = values[min(later)]
            marks.append(value)
        return marks

    def goes_on(self, better: int, competing: int) -> bool:
        """Whether one of `competing` trials at a rung, of which so many are `better`, goes on."""
        return better < max(competing // self.reduction_factor, 1)


@dataclass(frozen=True, slots=True)
class Hyperband(PoolPruner):
    """Optuna's `HyperbandPruner`: several successive halvings, a trial's number decides in which it is."""

    study_name: str
    min_resource: int
    max_resource: int
    reduction_factor: int
    maximize: bool

    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:
        """See `PoolPruner.judge`."""
        return judge_arrivals(table, asked, self, self._brackets(), self._bracket_of())

    def _count(self) -> int:
        return math.floor(math.log(self.max_resource / self.min_resource, self.reduction_factor)) + 1

    def _brackets(self) -> tuple[SuccessiveHalving, ...]:
        return tuple(
            SuccessiveHalving(self.min_resource, self.reduction_factor, bracket, self.maximize)
            for bracket in range(self._count())
        )

    def _bracket_of(self) -> Callable[[int], int]:
        count = self._count()
        left = range(count - 1, -1, -1)
        shares = [math.ceil(count * self.reduction_factor**brackets / (brackets + 1)) for brackets in left]
        ends = list(accumulate(shares))
        prefix = crc32(f"{self.study_name}_".encode())
        return lambda number: bisect_right(ends, crc32(str(number).encode(), prefix) % ends[-1])


def judge_arrivals(
    table: RungTable,
    asked: Sequence[tuple[int, int]],
    name: Hashable,
    brackets: Sequence[SuccessiveHalving],
    bracket_of: Callable[[int], int],
) -> list[Verdict]:
    """Judge trials by those that came to their rungs before them, in `brackets` of their own."""
    sign = -1.0 if brackets[0].maximize else 1.0  # less is better

    def marks(trial: FrozenTrial) -> Iterator[tuple[Hashable, float]]:
        bracket = bracket_of(trial.number)
        for rung, mark in enumerate(brackets[bracket].marks(trial)):
            yield (bracket, rung), sign * mark

    ended = table.ranked(name, marks)
    steps = dict(asked)
    places: dict[int, tuple[int, int]] = {}
    under_way: dict[tuple[int, int], list[float]] = {}
    for number, trial in table.open.items():
        bracket = bracket_of(number)
        reached = brackets[bracket].marks(trial, steps.get(number, math.inf))
        places[number] = (bracket, len(reached))
        for rung, mark in enumerate(reached):
            under_way.setdefault((bracket, rung), []).append(sign * mark)
    for others in under_way.values():
        others.sort()
    verdicts = []
    for number, step in asked:
        found = asked_trial(table, number, step)
        if found is None:
            verdicts.append(GO_ON)
            continue
        bracket, rung = places[number]
        rule = brackets[bracket]
        value = found.intermediate_values[step]
        mine = sign * value
        stop = False
        given: dict[str, float] = {}
        while not stop and step >= rule.bars[rung]:
            if math.isnan(value):
                stop = True
                break
            given[_MARKS[rung]] = value
            before, beside = ended[bracket, rung], under_way.setdefault((bracket, rung), [])
            insort(beside, mine)
            better = bisect_left(before, mine) + bisect_left(beside, mine)
            stop = not rule.goes_on(better, len(before) + len(beside))
            rung += 1
        verdicts.append(Verdict(stop, given) if given else STOP if stop else GO_ON)
    return verdicts


@dataclass(frozen=True, slots=True)
class Asha(PoolPruner):
    """Our own successive halving, `search.pruning.pruners.AshaPruner`: no order of arrival decides."""

    min_epochs: int
    eta: int
    maximize: bool

    def judge(self, table: RungTable, asked: Sequence[tuple[int, int]]) -> list[Verdict]:
        """See `PoolPruner.judge`."""
        if not asked:
            return []
        rungs = rungs_passed(max(step for _, step in asked), self.min_epochs, self.eta)
        ranking = Places(self.min_epochs, self.eta, self.maximize)
        ended = ranking.ended(table)
        places = {rung: ranking.under_way(table, rung) for rung in rungs}
        last_kept = {rung: self._last_kept(ended[rung], sorted(places[rung].values())) for rung in rungs}
        verdicts = []
        for number, step in asked:
            stop = asked_trial(table, number, step) is not None and any(
                rung <= step and number in places[rung] and places[rung][number] > last_kept[rung]
                for rung in rungs
            )
            verdicts.append(STOP if stop else GO_ON)
        return verdicts

    def _last_kept(self, ended: Sequence[Place], others: Sequence[Place]) -> Place:
        reached = len(ended) + len(others)
        return (
            last_of_best(ended, others, reached // self.eta) if reached >= self.eta else (math.inf, math.inf)
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Who reached which rung (``min_epochs * eta**k``), from best to worst, of all trials of a study."""

    min_epochs: int
    eta: int
    maximize: bool

    def ended(self, table: RungTable) -> Ranked:
        """The finished trials, by rung."""
        return table.ranked(self, self._of)

    def under_way(self, table: RungTable, rung: int) -> dict[int, Place]:
        """The places of the others that reached a rung, by number."""
        return {
            number: rank_key(trial.intermediate_values[rung], number, maximize=self.maximize)
            for number, trial in table.open.items()
            if rung in trial.intermediate_values
        }

    def _of(self, trial: FrozenTrial) -> Iterator[tuple[Hashable, Place]]:
        for rung in rungs_passed(trial.last_step or 0, self.min_epochs, self.eta):
            if rung in trial.intermediate_values:
                value = trial.intermediate_values[rung]
                yield rung, rank_key(value, trial.number, maximize=self.maximize)


def last_of_best(ended: Sequence[Place], others: Sequence[Place], count: int) -> Place:
    """The last of the `count` best of two ordered parts; there are so many, and at least one."""
    # The fewest of `ended` such that these and the rest from `others` are the best.
    low, high = max(count - len(others), 0), min(count, len(ended))
    while low < high:
        middle = (low + high) // 2
        if ended[middle] < others[count - middle - 1]:
            low = middle + 1
        else:
            high = middle
    return max([*ended[max(low - 1, 0) : low], *others[max(count - low - 1, 0) : count - low]])


def rank_key(value: float, number: int, *, maximize: bool) -> Place:
    """Sorts a rung from best to worst; what is not a number is worst, equal values go by number."""
    if math.isnan(value):
        return (math.inf, number)
    return (-value if maximize else value, number)


def rungs_passed(step: int, min_epochs: int, eta: int) -> list[int]:
    """The epochs ``min_epochs * eta**k`` that a trial with `step` epochs has reached, in order."""
    rungs = []
    rung = min_epochs
    while rung <= step:
        rungs.append(rung)
        rung *= eta
    return rungs
