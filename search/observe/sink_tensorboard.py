"""TensorBoard as a sink: a folder per trial with one file of events, which its HParams page reads as well.

A file is written aside under a name that TensorBoard doesn't look at, and gets its own once it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.observe.sinks import SinkError, curves_of, finals_of, name_of, tags_of

if TYPE_CHECKING:
    from search.observe.sinks import Origin
    from storage.finished import FinishedTrial

FILE = "events.out.tfevents.{seconds}.shoal-{birth}-{trial_id}"
"""TensorBoard reads what has `tfevents` in its name."""
ASIDE = "writing"


class TensorboardSink:
    """See `search.observe.sinks.Sink`. `place` is a folder; each experiment has one of its own in it."""

    def __init__(self, place: str, origin: Origin) -> None:
        self._origin = origin
        self._folder = Path(place).expanduser() / _part(origin.experiment)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(error) from error

    def known(self) -> set[int]:
        """Ids of the trials whose files are there."""
        name = re.compile(rf"events\.out\.tfevents\.\d+\.shoal-{self._origin.birth}-(\d+)")
        try:
            found = [name.fullmatch(path.name) for path in self._folder.rglob("events.out.tfevents.*")]
        except OSError as error:
            raise _unwritable(error) from error
        return {int(match.group(1)) for match in found if match}

    def write(self, trial: FinishedTrial) -> None:
        """Write a trial's file."""
        row = trial.row
        ended = 0.0 if row.ended_at is None else row.ended_at.timestamp()
        folder = self._folder.joinpath(*map(_part, name_of(trial).split("/")))
        name = FILE.format(seconds=int(ended), birth=self._origin.birth, trial_id=row.trial_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / ASIDE
            with aside.open("wb") as file:
                _write(file, self._events(trial, ended))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(folder / name)
        except OSError as error:
            raise _unwritable(error) from error

    def _events(self, trial: FinishedTrial, ended: float) -> Iterator[Any]:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        def event(step: int, summary: Summary) -> Event:
            return Event(wall_time=ended, step=step, summary=summary)

        yield Event(wall_time=ended, file_version="brain.Event:2")
        yield event(0, _session("start", trial, self._origin, ended))
        for epoch, numbers in curves_of(trial):
            yield event(epoch, _scalars(numbers))
        yield event(trial.row.epochs, _scalars({f"final/{k}": v for k, v in finals_of(trial).items()}))
        yield event(0, _session("end", trial, self._origin, ended))


def _scalars(numbers: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])


def _session(which: str, trial: FinishedTrial, origin: Origin, ended: float) -> Any:
    """What the HParams page reads: a run's config and tags at its start, how it ended at its end."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )

    row = trial.row
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION)
    if which == "start":
        started = ended if row.started_at is None else row.started_at.timestamp()
        info = SessionStartInfo(group_name=name_of(trial), start_time_secs=started)
        for name, value in {**tags_of(trial, origin), **row.params}.items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = str(value)
        data.session_start_info.CopyFrom(info)
        tag = metadata.SESSION_START_INFO_TAG
    else:
        status = STATUS_FAILURE if row.state == "failed" else STATUS_SUCCESS
        data.session_end_info.CopyFrom(SessionEndInfo(status=status, end_time_secs=ended))
        tag = metadata.SESSION_END_INFO_TAG
    about = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(
            plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
        )
    )
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def _write(file: Any, events: Iterator[Any]) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())


def _part(name: str) -> str:
    """A name as one part of a path: nothing in it leads elsewhere."""
    return re.sub(r"[^\w.-]", "_", name).strip(".") or "_"


def _unwritable(error: OSError) -> SinkError:
    return SinkError(f"{error.filename or 'its folder'}: {error.strerror or error}")
