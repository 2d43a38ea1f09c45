"""Being the only controller of an experiment, also where the last one's end is not yet known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from search.control.events import Listener, Trouble
from storage.errors import ExperimentBusy

if TYPE_CHECKING:
    from storage.control import Control
    from storage.experiments import Experiments
    from storage.records import ExperimentRecord

LOOK_SECONDS = 1.0
"""Between two tries."""


@contextmanager
def patient_control(
    experiments: Experiments, experiment: ExperimentRecord, seconds: float, on_event: Listener
) -> Iterator[Control]:
    """The experiment's lock; whoever has it is waited for up to so many seconds.

    A server may take a while to see that a controller's machine is gone, and with it the connection that
    holds the lock. Raises `ExperimentBusy`.
    """
    until, told = time.monotonic() + seconds, False
    with ExitStack() as stack:
        while True:
            try:
                control = stack.enter_context(experiments.control(experiment))
                break
            except ExperimentBusy:
                if time.monotonic() >= until:
                    raise
            if not told:
                on_event(Trouble("another controller has the experiment, waiting for its end"))
                told = True
            time.sleep(LOOK_SECONDS)
        yield control
