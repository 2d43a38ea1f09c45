"""How an experiment stands: its record, its progress, and whether anybody runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING

from rich.text import Text

from search import output
from search.progress import MethodProgress, by_method, retrained_winners

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import ExperimentRecord, LaunchRecord, StudyProgress

ENDED = frozenset({"finished", "stopped", "failed"})
"""States in which an experiment waits for nobody but its owner."""

INTERRUPTED = "interrupted"
"""What is shown for an experiment that should be run by a process and is not."""

SECOND_LOOK = 0.1
"""Seconds after which we look again at an experiment that seems interrupted, if it changed of late."""

OF_LATE = 10.0
"""Seconds within which whoever makes an experiment, or takes it up again, has become its controller."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an experiment shows."""

    record: ExperimentRecord
    studies: Sequence[StudyProgress]
    methods: Sequence[MethodProgress]
    controlled: bool
    """A living process runs it."""
    retraining: MethodProgress | None = None
    """Of the winners; None if the file asks for none."""
    launch: LaunchRecord | None = None
    """Its newest submission to a cluster, if it was ever submitted."""
    under_way: bool = False
    """Although no process controls it: workers train for it alone, or its driver is on its way."""

    @property
    def rows(self) -> list[MethodProgress]:
        """What a table of its progress shows."""
        return [*self.methods, *([self.retraining] if self.retraining else [])]

    @property
    def ended(self) -> bool:
        """Nothing more will happen unless somebody goes on with it."""
        return self.record.state in ENDED or self.interrupted

    @property
    def submitted(self) -> bool:
        """It was submitted, and its driver has not begun."""
        waits = self.launch is not None and self.launch.state == "submitted"
        return waits and not self.controlled and self.record.state != "running"

    @property
    def interrupted(self) -> bool:
        """Its controller died: nobody could say how it ended."""
        return self.record.state not in ENDED and not (self.controlled or self.under_way)

    def headline(self) -> Text:
        """Its name and state."""
        name, state = output.clean(self.record.name), self.record.state
        if self.interrupted:
            said = Text(f"{INTERRUPTED}: no process runs it; shoal resume {name} goes on", style="yellow")
        elif self.submitted:
            said = Text("submitted: its driver has not begun")
        else:
            alone = ", by workers alone" if state == "running" and not self.controlled else ""
            asked = ", asked to stop" if state == "running" and self.record.stop_requested else ""
            said = Text(f"{state}{alone}{asked}")
        return Text.assemble((name, "bold"), "  ", said)


def interrupted_among(connection: Database, records: Sequence[ExperimentRecord]) -> frozenset[int]:
    """The numbers of those that should be run by somebody and are not.

    Looks again if one seems so: state and lock are two statements, and it may have begun or ended in between.
    Takes `SECOND_LOOK` seconds more for one that was made or changed its state a moment ago.
    """
    from storage.experiments import Experiments
    from storage.launches import Launches

    found = frozenset(record.id for record in records if record.state not in ENDED)
    experiments = Experiments(connection)
    found -= experiments.controlled(found)
    if found:
        found -= Launches(connection).under_way()
    if found:
        if experiments.changed_within(OF_LATE, found):
            sleep(SECOND_LOOK)
        open_still = {record.id for record in experiments.list() if record.state not in ENDED}
        found = (found & open_still) - experiments.controlled(found) - Launches(connection).under_way()
    return found


def look(connection: Database, experiment: str) -> Look:
    """How far an experiment is. Raises `ExperimentNotFound`."""
    from storage import queries
    from storage.experiments import Experiments
    from storage.launches import Launches

    experiments = Experiments(connection)
    record = experiments.get(experiment)
    interrupted = record.id in interrupted_among(connection, [record])
    if record.state not in ENDED:
        record = experiments.get(experiment)
    controlled = record.id in experiments.controlled([record.id])
    every = queries.progress(connection, record.id, role=None)
    rows = [row for row in every if row.study.role == "search"]
    retraining = [row for row in every if row.study.role == "retraining"]
    maximize = queries.direction(connection, record.id) != "minimize"
    return Look(
        record,
        rows,
        by_method(rows, record.spec, maximize=maximize),
        controlled,
        retrained_winners(retraining, len(rows), record.spec),
        Launches(connection).newest(record.id),
        not (interrupted or controlled),
    )
