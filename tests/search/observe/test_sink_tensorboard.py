"""TensorBoard as a sink, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.observe import sink_tensorboard
from search.observe.sink_tensorboard import TensorboardSink
from search.observe.sinks import Origin, Sink, SinkError
from tests.contracts.sink_contract import ORIGIN, Held, SinkContract, finished


class TestTensorboardSink(SinkContract):
    def open(self, place: Path, origin: Origin = ORIGIN) -> Sink:
        return TensorboardSink(str(place), origin)

    def held(self, place: Path, origin: Origin = ORIGIN) -> list[Held]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = []
        for path in sorted(place.rglob("*tfevents*")):
            events = EventAccumulator(str(path)).Reload()
            scalars = {
                tag: {point.step: point.value for point in events.Scalars(tag)}
                for tag in events.Tags()["scalars"]
            }
            finals = {
                tag.removeprefix("final/"): scalars.pop(tag) for tag in list(scalars) if "final/" in tag
            }
            start, failed = self._session(events)
            params = {name: value for name, value in start.items() if name in finished().row.params}
            found.append(
                Held(
                    tags={name: value for name, value in start.items() if name not in params},
                    params=params,
                    curves=scalars,
                    finals={name: value for name, points in finals.items() for value in points.values()},
                    failed=failed,
                )
            )
        return found

    def _session(self, events: object) -> tuple[dict[str, str], bool]:
        """What the HParams page shows of a run, and whether it failed."""
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE

        contents = events.PluginTagToContent(metadata.PLUGIN_NAME)  # type: ignore[attr-defined]
        start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
        end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
        told = {name: str(getattr(value, value.WhichOneof("kind"))) for name, value in start.hparams.items()}
        told = {name: text.removesuffix(".0") for name, text in told.items()}
        return told, end.status == STATUS_FAILURE

    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def half(file: object, events: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt

        monkeypatch.setattr(sink_tensorboard, "_write", half)


def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file"):
        TensorboardSink(str(tmp_path / "file"), ORIGIN)


def test_a_full_disk_is_the_sinks_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = TensorboardSink(str(tmp_path), ORIGIN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink_tensorboard, "_write", full)
    with pytest.raises(SinkError, match="No space left"):
        sink.write(finished())
    assert sink.known() == set()
