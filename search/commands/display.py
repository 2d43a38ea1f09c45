"""Shows a running experiment's events on stderr."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.text import Text

from search.control.events import Event, Preparing, Progress, Started, Stopping, Trouble
from search.output import clean, stderr
from search.progress import ProgressView, by_method, retrained_winners
from storage import queries

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from storage.database import Database


class RunDisplay:
    """Takes the controller's events while it is entered. Events may come from several threads."""

    def __init__(self, spec: ExperimentSpec, database: Database) -> None:
        self._spec = spec.to_json()
        self._database = database
        self._direction: queries.Direction | None = None
        self._console = stderr()
        self._view = ProgressView(spec.experiment, spec.metric, self._console)
        self.signal: signal.Signals | None = None
        """The signal that ended the run, if one did."""

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.__exit__(kind, error, trace)

    def on_event(self, event: Event) -> None:
        """Say what happened. That nobody reads it any more (`| head`) is no reason to end a run."""
        with suppress(BrokenPipeError):
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Preparing(what):
                self._say(f"{what} …", style="dim")
            case Started(experiment, workers, resumed):
                begun = "going on with" if resumed else "started"
                self._say(f"{begun} {experiment} with {workers} worker{'' if workers == 1 else 's'}")
            case Progress(studies, retraining=retraining):
                if self._direction is None and studies:
                    # Only now are there sure to be studies in the database.
                    self._direction = queries.direction(self._database, studies[0].study.experiment_id)
                methods = by_method(studies, self._spec, maximize=self._direction != "minimize")
                retrained = retrained_winners(retraining, len(studies), self._spec)
                self._view.update([*methods, retrained] if retrained else methods)
            case Trouble(text):
                self._say(text, style="yellow")
            case Stopping(why):
                if why in signal.Signals.__members__:
                    self.signal = signal.Signals[why]
                self._say(f"{why}: ending the current epochs, then stopping; once more kills", style="yellow")

    def _say(self, text: str, style: str = "") -> None:
        # Through the view's console: another one would write across a live display.
        self._console.print(Text(clean(text), style=style), soft_wrap=True)
