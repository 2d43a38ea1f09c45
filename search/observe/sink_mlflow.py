"""MLflow as a sink: an MLflow experiment of the same name, in it a run per trial.

A run is whole once it was terminated, which comes last. One that was not is of a writer that died in
between, and is written anew. A run that somebody deleted in MLflow stays deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from search.observe.sinks import SinkError, curves_of, finals_of, name_of, tags_of

if TYPE_CHECKING:
    from search.observe.sinks import Origin
    from storage.finished import FinishedTrial

PREFIX = "shoal."
KEY = PREFIX + "key"
"""Tag of a run: which trial of which database it is."""
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500
"""What one request to MLflow may hold, and the longest value of a parameter or tag."""
PAGE = 1000


class MlflowSink:
    """See `search.observe.sinks.Sink`. `place` is a tracking URI: http(s), or a database's.

    MLflow's own environment variables (MLFLOW_TRACKING_TOKEN, …) hold for it.
    """

    def __init__(self, place: str, origin: Origin) -> None:
        # MLflow tells its makers how it is used and logs in a form of its own, unless asked not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        from mlflow import MlflowClient

        self._origin = origin
        self._half: dict[int, list[str]] = {}
        with _translated():
            self._client = MlflowClient(tracking_uri=place)
            self._experiment_id = self._experiment()

    def known(self) -> set[int]:
        """Ids of the trials whose runs are whole."""
        from mlflow.entities import ViewType

        known: set[int] = set()
        self._half = {}
        token = None
        with _translated():
            while True:
                page = self._client.search_runs(
                    [self._experiment_id], run_view_type=ViewType.ALL, max_results=PAGE, page_token=token
                )
                for run in page:
                    self._sort_in(run, known)
                token = page.token
                if not token:
                    return known

    def write(self, trial: FinishedTrial) -> None:
        """Write a trial as a run."""
        from mlflow.entities import Metric, Param

        row, ended = trial.row, _milliseconds(trial.row.ended_at)
        tags = {PREFIX + name: value[:LONGEST] for name, value in tags_of(trial, self._origin).items()}
        metrics = [
            Metric(name, value, ended, epoch)
            for epoch, numbers in curves_of(trial)
            for name, value in numbers.items()
        ]
        metrics += [Metric(name, value, ended, row.epochs) for name, value in finals_of(trial).items()]
        params = [Param(name, str(value)[:LONGEST]) for name, value in row.params.items()]
        with _translated():
            for run_id in self._half.pop(row.trial_id, []):
                self._client.delete_run(run_id)
            run = self._client.create_run(
                self._experiment_id,
                start_time=_milliseconds(row.started_at),
                tags=tags | {KEY: self._key(row.trial_id)},
                run_name=name_of(trial),
            )
            run_id = run.info.run_id
            self._half[row.trial_id] = [run_id]
            for some in _batches(params, MOST_PARAMS):
                self._client.log_batch(run_id, params=some)
            for some in _batches(metrics, MOST_METRICS):
                self._client.log_batch(run_id, metrics=some)
            status = "FAILED" if row.state == "failed" else "FINISHED"
            self._client.set_terminated(run_id, status, ended)
        del self._half[row.trial_id]

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._origin.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Somebody else made it at the same moment; or it can't be made, which says so again.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise SinkError(
                f"MLflow's experiment {name!r} was deleted there; restore it, or delete it for good"
            )
        return str(found.experiment_id)

    def _sort_in(self, run: Any, known: set[int]) -> None:
        birth, _, trial_id = run.data.tags.get(KEY, "").partition(":")
        if birth != self._origin.birth or not trial_id.isdecimal():
            return
        if run.info.status in ("FINISHED", "FAILED"):
            known.add(int(trial_id))
        elif run.info.lifecycle_stage == "active":
            self._half.setdefault(int(trial_id), []).append(run.info.run_id)

    def _key(self, trial_id: int) -> str:
        return f"{self._origin.birth}:{trial_id}"


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _milliseconds(moment: datetime | None) -> int:
    """Since 1970; MLflow wants a time, also of a trial that never started."""
    return 0 if moment is None else int(moment.timestamp() * 1000)


@contextmanager
def _translated() -> Iterator[None]:
    """MLflow raises errors of its own, of requests, of SQLAlchemy, of the system: all are the sink's."""
    try:
        yield
    except SinkError:
        raise
    except Exception as error:
        raise SinkError(f"{type(error).__name__}: {error}") from error
