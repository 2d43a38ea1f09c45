"""How far an experiment is, per method: in numbers, as a table, live in a terminal or line by line.

The numbers come from the database alone, so any process can show them and no worker is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from search.fitting import FittingTable
from search.formats import format_number, format_seconds
from search.output import clean

if TYPE_CHECKING:
    from storage.records import StudyProgress, TrialRow

ENDED_FOR_A_PACE = 5
SHARE_FOR_A_PACE = 0.03
LEAST_FOR_A_PACE = 2
"""Trials that have to end before the time left is estimated: so many, or, where trials are few and long,
that share of the plan, but at least the last number."""

RETRAINED = "winners retrained"
"""What stands in a method's place where the retraining of winners is shown."""

LINE_INTERVAL = 10.0
"""Seconds between two lines of progress where the output is not a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodProgress:
    """A method's trials over all its studies."""

    method: str
    studies: int
    planned: int
    """Trials that the budget allows; those of a grid are its points."""
    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    """For a slot."""
    epochs: int
    seconds: float
    best: float | None
    """The best of the studies' best values."""
    paused: int = 0
    """Trials that rest at a rung until they are promoted."""

    @property
    def finished(self) -> int:
        """Trials that count as done."""
        return self.complete + self.pruned + self.failed


def pauses(spec: Mapping[str, object]) -> bool:
    """Whether trials of a search rest at rungs, from their experiment's stored spec."""
    pruner = spec.get("pruner")
    return isinstance(pruner, Mapping) and pruner.get("name") == "asha_promotion"


def trial_state(row: TrialRow, *, pausing: bool) -> str:
    """A trial's state in a table; `pausing`: what waits after some epochs rests at a rung."""
    if row.diverged:
        return "diverged"
    return "paused" if pausing and row.state == "waiting" and row.epochs else row.state


def planned_trials(study: StudyProgress, spec: Mapping[str, object]) -> int:
    """How many trials a study is to have, from its experiment's stored spec.

    A grid's points are all enqueued when its study is made, so they can be counted.
    """
    budget = spec.get("budget")
    allowed = budget.get("trials") if isinstance(budget, Mapping) else None
    if study.study.method == "grid" and study.trials:
        return study.trials
    return max(int(allowed), study.trials) if isinstance(allowed, int) else study.trials


def by_method(
    studies: Sequence[StudyProgress], spec: Mapping[str, object], *, maximize: bool
) -> list[MethodProgress]:
    """The studies' progress added up per method, in the order of the studies."""
    rows = []
    for method in dict.fromkeys(study.study.method for study in studies):
        of_method = [study for study in studies if study.study.method == method]
        values = [study.best for study in of_method if study.best is not None]
        best = (max(values) if maximize else min(values)) if values else None
        rows.append(
            MethodProgress(
                method=method,
                studies=len(of_method),
                planned=sum(planned_trials(study, spec) for study in of_method),
                complete=sum(study.complete for study in of_method),
                pruned=sum(study.pruned for study in of_method),
                failed=sum(study.failed for study in of_method),
                running=sum(study.running for study in of_method),
                waiting=sum(study.waiting - study.paused for study in of_method),
                paused=sum(study.paused for study in of_method),
                epochs=sum(study.epochs for study in of_method),
                seconds=sum(study.seconds for study in of_method),
                best=best,
            )
        )
    return rows


def retrained_winners(
    studies: Sequence[StudyProgress], searches: int, spec: Mapping[str, object]
) -> MethodProgress | None:
    """The retraining of all winners in one row, as if it were a method's; None if the file asks for none.

    `studies` are those in which winners are retrained, of `searches` studies that have or will have a
    winner each.
    """
    comparison = spec.get("comparison")
    retrain = comparison.get("retrain") if isinstance(comparison, Mapping) else None
    seeds = retrain.get("seeds") if isinstance(retrain, Mapping) else None
    if not isinstance(seeds, int) or seeds == 0:
        return None
    return MethodProgress(
        method=RETRAINED,
        studies=len(studies),
        planned=max(seeds * searches, sum(study.trials for study in studies)),
        complete=sum(study.complete for study in studies),
        pruned=0,
        failed=sum(study.failed for study in studies),
        running=sum(study.running for study in studies),
        waiting=sum(study.waiting for study in studies),
        epochs=sum(study.epochs for study in studies),
        seconds=sum(study.seconds for study in studies),
        best=None,
    )


def remaining_seconds(*, ended: int, finished: int, planned: int, elapsed: float) -> float | None:
    """How long the rest takes if it goes on as it went: `ended` trials in `elapsed` seconds.

    None while too few have ended to tell.
    """
    enough = min(ENDED_FOR_A_PACE, max(LEAST_FOR_A_PACE, SHARE_FOR_A_PACE * planned))
    if ended < enough or elapsed <= 0:
        return None
    return max(0, planned - finished) * elapsed / ended


class Pace:
    """The time that is left, by what has ended since the first trial was seen to end.

    Not since the first look: the start of workers, and a first trial that waits for all that a
    process does once, are no part of the pace. Trials that had ended before are none either.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: int | None = None
        self._base: tuple[int, float] | None = None

    def remaining(self, methods: Sequence[MethodProgress]) -> float | None:
        """Seconds left; None while it can't be told."""
        finished = sum(method.finished for method in methods)
        if self._found is None:
            self._found = finished
        if self._base is None:
            if finished > self._found:
                self._base = (finished, self._clock())
            return None
        before, since = self._base
        return remaining_seconds(
            ended=finished - before,
            finished=finished,
            planned=sum(method.planned for method in methods),
            elapsed=self._clock() - since,
        )


def progress_table(methods: Sequence[MethodProgress], metric: str) -> FittingTable:
    """One row per method with a bar."""
    table = FittingTable(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method")
    table.add_column("", min_width=12, max_width=24)
    pauses = any(row.paused for row in methods)
    paused = ("paused",) if pauses else ()
    for column in ("trials", "pruned", "failed", "running", *paused, "epochs", f"best {clean(metric)}"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in methods:
        table.add_row(
            Text(clean(row.method)),
            ProgressBar(total=max(row.planned, 1), completed=row.finished, width=20),
            f"{row.finished}/{row.planned}",
            str(row.pruned),
            Text(str(row.failed), style="red" if row.failed else ""),
            str(row.running),
            *([str(row.paused)] if pauses else []),
            str(row.epochs),
            Text("" if row.method == RETRAINED else format_number(row.best), style="bold"),
        )
    return table


def progress_line(experiment: str, methods: Sequence[MethodProgress], remaining: float | None) -> str:
    """All of it in one line, for logs."""
    finished, planned, done = _searched(methods)
    parts = [
        f"{clean(m.method)} {m.finished}/{m.planned}"
        + (f" best {format_number(m.best)}" if m.method != RETRAINED else "")
        + (f" pruned {m.pruned}" if m.pruned else "")
        + (f" paused {m.paused}" if m.paused else "")
        + (f" failed {m.failed}" if m.failed else "")
        for m in methods
    ]
    left = f", about {format_seconds(remaining)} left" if remaining and not done else ""
    return f"{clean(experiment)}: {finished}/{planned} trials{left} | " + " | ".join(parts)


def _searched(methods: Sequence[MethodProgress]) -> tuple[int, int, bool]:
    """Trials of the search that have ended, of how many, and whether all is done, retraining included."""
    searched = [method for method in methods if method.method != RETRAINED]
    done = all(method.finished >= method.planned for method in methods)
    return sum(m.finished for m in searched), sum(m.planned for m in searched), done


class ProgressView:
    """Shows progress on a console: live in a terminal, else a line now and then.

    Used as a context manager. `update` may be called as often as one likes: lines are printed at
    most every `LINE_INTERVAL` seconds and at the end, and never twice the same.
    """

    def __init__(
        self, experiment: str, metric: str, target: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._experiment = experiment
        self._metric = metric
        self._console = target
        self._clock = clock
        self._pace = Pace(clock)
        self._live: Live | None = None
        self._line = self._printed = ""
        self._printed_at: float | None = None

    @property
    def live(self) -> bool:
        """Whether the console can redraw."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> Self:
        if self.live:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._line != self._printed:
            self._print()  # how it ended, however soon after the line before

    def update(self, methods: Sequence[MethodProgress]) -> None:
        """Show where things stand now."""
        remaining = self._pace.remaining(methods)
        if self._live is not None:
            self._live.update(self._picture(methods, remaining), refresh=True)
            return
        self._line = progress_line(self._experiment, methods, remaining)
        due = self._printed_at is None or self._clock() - self._printed_at >= LINE_INTERVAL
        if due and self._line != self._printed:
            self._print()

    def _print(self) -> None:
        self._console.print(self._line, soft_wrap=True)
        self._printed, self._printed_at = self._line, self._clock()

    def _picture(self, methods: Sequence[MethodProgress], remaining: float | None) -> RenderableType:
        finished, planned, done = _searched(methods)
        left = f"about {format_seconds(remaining)} left" if remaining and not done else ""
        head = Text.assemble((clean(self._experiment), "bold"), f"  {finished}/{planned} trials  {left}")
        return Group(head, progress_table(methods, self._metric))
