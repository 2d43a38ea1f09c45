"""How much of the time slots have a trial, under successive halving with eta 3.

    python -m tests.benchmarks.fused_occupancy [--rounds 5] [--trials 108] [--slots 12] [--output FILE]

Three ways to train so many trials, in every round in a turning order, after a round that is not counted:
`group`, a static fused group: as many trials as there are slots begin together, and the next group begins
when the last of them has ended; `refilled`, an engine that is given the next trial at once; `search`, what
users run: a random search on an embedded Postgres, whose worker asks ahead, claims, reports and prunes while
the engine trains. In the first two, trials end after 1, 3 or 9 epochs as successive halving with eta 3 has
it; in `search` the pruner decides, and a slot trains on until the verdict is there.

Slot-time is the number of slots times the seconds from the first trial's beginning to the last one's end, by
the clock. Of it, `held` is the share in which a slot has a trial, whether in its first epoch or its last, and
`useful` is `held` without what is spent after a trial's last epoch until it leaves (a verdict is awaited).
Both are told `over all` the run and `while trials are left`: until the last trial begins. From then on slots
empty one by one whatever anybody does, which is `tail`; `between` is what they stand empty before. `by
epochs` says what a group costs whose steps do not get smaller as its trials end, which is the case of a
program of fixed shapes: all epochs that trials train, over slots times the epochs of each group's longest.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from objectives.base import DataSpec, EpochEnd, ObjectiveError, Task, TrialFailure, TrialStart
from objectives.bench import RUNGS, Work, run, summary
from objectives.choices import Choices
from objectives.fused import FusedEngine
from search.control.controller import run_experiment
from search.environment import environment
from search.experiment.spec import ExperimentSpec
from storage.embedded import EmbeddedPostgres
from tests.benchmarks.reasons import missed

SEED = 1
TARGET = 0.95


@dataclass(slots=True)
class Stay:
    """A trial in a slot; times by `time.perf_counter`."""

    begun: float
    ends: list[float] = field(default_factory=list)
    """Of its epochs."""
    left: float = 0.0


class Watched(FusedEngine):
    """A fused engine that notes when its slots had a trial. Everything is fused, whatever is chosen."""

    made: ClassVar[list[Watched]] = []
    slots_made: ClassVar[int] = 12

    def __init__(self, task: Task, device: str = "cpu", *, choices: Choices | None = None) -> None:
        del choices
        super().__init__(task, device, slots=self.slots_made)
        self.stays: list[Stay] = []
        self._held: dict[int, Stay] = {}
        self.made.append(self)

    def admit(self, start: TrialStart) -> None:
        super().admit(start)
        self._held[start.trial_id] = Stay(time.perf_counter())
        self.stays.append(self._held[start.trial_id])

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        events = super().advance()
        now = time.perf_counter()
        for event in events:
            if isinstance(event, TrialFailure):
                raise ObjectiveError(event.reason)
            self._held[event.trial_id].ends.append(now)
        return events

    def retire(self, trial_id: int) -> None:
        super().retire(trial_id)
        self._held.pop(trial_id).left = time.perf_counter()


def shares(stays: Sequence[Stay], slots: int) -> dict[str, Any]:
    """What the module says, as shares of slot-time; trials in the order in which they began."""
    began, last = min(stay.begun for stay in stays), max(stay.begun for stay in stays)
    ended = max(stay.left for stay in stays)
    lasts = [stay.ends[-1] if stay.ends else stay.begun for stay in stays]

    def spent(until: float, leaving: Sequence[float]) -> float:
        pairs = zip(stays, leaving, strict=True)
        return sum(max(0.0, min(left, until) - stay.begun) for stay, left in pairs)

    def told(until: float) -> dict[str, float]:
        total = slots * (until - began) or 1.0
        return {
            "held": spent(until, [stay.left for stay in stays]) / total,
            "useful": spent(until, lasts) / total,
        }

    total, whole, early = slots * (ended - began), told(ended), told(last)
    between = (1 - early["held"]) * slots * (last - began) / total
    epochs = [len(stay.ends) for stay in stays]
    groups = [epochs[first : first + slots] for first in range(0, len(epochs), slots)]
    return {
        "over all": whole,
        "while trials are left": early,
        "empty": {"between": between, "tail": 1 - whole["held"] - between},
        "awaiting a verdict": whole["held"] - whole["useful"],
        "by epochs": sum(epochs) / (slots * sum(max(group) for group in groups)),
        "seconds": ended - began,
        "epochs": sum(epochs),
    }


class Ways:
    """The three ways, each gives the shares of one round."""

    def __init__(self, data: DataSpec, trials: int, slots: int, database_url: str) -> None:
        self._work = Work(data, trials, batch_sizes=(32,), mixed=False, seed=SEED)
        self._slots = slots
        self._url = database_url
        self._rounds = 0

    def all(self) -> dict[str, Callable[[], dict[str, Any]]]:
        return {"group": self.group, "refilled": self.refilled, "search": self.search}

    def group(self) -> dict[str, Any]:
        engine, starts, ends = self._engine(), self._work.starts(), self._work.ends()
        for first in range(0, len(starts), self._slots):
            run(engine, starts[first : first + self._slots], ends)
        return shares(engine.stays, self._slots)

    def refilled(self) -> dict[str, Any]:
        engine = self._engine()
        run(engine, self._work.starts(), self._work.ends())
        return shares(engine.stays, self._slots)

    def _engine(self) -> Watched:
        return Watched(Task(data=self._work.data))

    def search(self) -> dict[str, Any]:
        Watched.made.clear()
        self._rounds += 1
        spec = ExperimentSpec.model_validate(
            {
                "experiment": f"occupancy-{self._rounds}",
                "seed": self._rounds,
                "data": {"name": self._work.data.name, "limit": self._work.data.limit},
                "fixed": {"epochs": RUNGS[-1], "batch_size": 32, "optimizer": "momentum"},
                "space": {
                    "learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
                    "lambda": {"low": 1e-6, "high": 1e-2, "log": True},
                },
                "methods": {"random": {}},
                "replicates": 1,
                "budget": {"trials": self._work.trials},
                "pruner": {"name": "successive_halving"},
                "comparison": {"retrain": {"seeds": 0}},
            }
        )
        trainer = f"{Watched.__module__}:{Watched.__name__}"
        outcome = run_experiment(spec, self._url, in_process=True, device="cpu", trainer=trainer)
        (engine,) = Watched.made
        if outcome.state != "finished" or len(engine.stays) < self._work.trials:
            raise ObjectiveError(f"the search ended {outcome.state}")
        return shares(engine.stays, self._slots)


def measured(
    ways: Mapping[str, Callable[[], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Every way in every round."""
    names = list(ways)
    for name in names:
        ways[name]()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(ways[name]())
            print(f"round {number + 1}: {name}", json.dumps(found[name][-1]), flush=True)
    return found


def told(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The spread of every number over the rounds."""
    result: dict[str, Any] = {}
    for key, value in rounds[0].items():
        values = [one[key] for one in rounds]
        result[key] = told(values) if isinstance(value, Mapping) else summary(values)
    return result


def why(found: Mapping[str, Any]) -> dict[str, Any]:
    """Where the slot-time of the search went that no trial had."""
    tail, between = (found["empty"][name]["median"] for name in ("tail", "between"))
    return {
        "why": f"{tail:.1%} of slot-time is the tail, after the last trial has begun, when none is left to "
        f"take a slot; {between:.1%} are slots that stood empty before, until a trial was claimed and the "
        f"step that ran had ended"
    }


@contextmanager
def server() -> Iterator[str]:
    """The URL of a Postgres that lives as long as the block, with a home of its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder, ExitStack() as held:
        held.enter_context(mock.patch.dict(os.environ, {"SHOAL_HOME": folder}))
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        held.callback(postgres.stop)
        yield postgres.start()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=108)
    parser.add_argument("--slots", type=int, default=12)
    parser.add_argument("--limit", type=int, default=250, help="images, of which a fifth is for validation")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()
    Watched.slots_made = given.slots
    with server() as url:
        ways = Ways(DataSpec(name="digits", limit=given.limit), given.trials, given.slots, url)
        rounds = measured(ways.all(), given.rounds)
    found = {name: {**told(ran), "rounds": ran} for name, ran in rounds.items()}
    body = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.fused_occupancy", *sys.argv[1:]]),
        "trials": given.trials,
        "slots": given.slots,
        "images": given.limit,
        "rungs": list(RUNGS),
        "seed": SEED,
        "load_before": load,
        **environment(),
        "definitions": __doc__.partition("\n\n")[2].partition("\n\n")[2],
        "ways": found,
        "missed": [
            entry
            for part in ("while trials are left", "over all")
            for entry in missed(
                f"slots held {part}, in a search",
                found["search"][part]["held"]["median"],
                TARGET,
                lambda: why(found["search"]),
            )
        ],
    }
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    for name, ran in found.items():
        line = {part: ran[part]["held"]["median"] for part in ("over all", "while trials are left")}
        print(name, json.dumps({**line, "by epochs": ran["by epochs"]["median"]}))
    print("missed:", json.dumps(body["missed"], ensure_ascii=False))


if __name__ == "__main__":
    main()
