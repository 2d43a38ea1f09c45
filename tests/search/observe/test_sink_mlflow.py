"""MLflow as a sink, written to a real store of its own and read back by its own client."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from search.observe.sink_mlflow import PREFIX, MlflowSink
from search.observe.sinks import Origin, Sink, SinkError
from tests.contracts.sink_contract import ORIGIN, Held, SinkContract, finished

pytestmark = [
    pytest.mark.slow,
    # MLflow's own store, on SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]
FINALS = {"value", "epochs", "device_seconds", "sampler_seconds", "test_accuracy"}


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        MlflowSink(f"sqlite:///{folder}/mlflow.db", Origin(experiment="x", birth="x", metric="x"))
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def empty(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TestMlflowSink, "template", store, raising=False)
    monkeypatch.chdir(store.parent)


class TestMlflowSink(SinkContract):
    template: Path

    def uri(self, place: Path) -> str:
        if not (place / "mlflow.db").exists():
            shutil.copy(self.template, place / "mlflow.db")
        return f"sqlite:///{place}/mlflow.db"

    def open(self, place: Path, origin: Origin = ORIGIN) -> Sink:
        return MlflowSink(self.uri(place), origin)

    def client(self, place: Path) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri(place))

    def runs(self, place: Path, origin: Origin = ORIGIN) -> list[Any]:
        client = self.client(place)
        experiment = client.get_experiment_by_name(origin.experiment)
        return list(client.search_runs([experiment.experiment_id]))

    def held(self, place: Path, origin: Origin = ORIGIN) -> list[Held]:
        client, found = self.client(place), []
        for run in self.runs(place, origin):
            histories = {
                name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
                for name in run.data.metrics
            }
            tags = {
                name.removeprefix(PREFIX): value
                for name, value in run.data.tags.items()
                if name.startswith(PREFIX)
            }
            del tags["key"]
            found.append(
                Held(
                    tags=tags,
                    params=run.data.params,
                    curves={name: points for name, points in histories.items() if name not in FINALS},
                    finals={name: value for name, value in run.data.metrics.items() if name in FINALS},
                    failed=run.info.status == "FAILED",
                )
            )
        return found

    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import MlflowClient

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(MlflowClient, "set_terminated", die)

    def test_a_run_has_the_trials_name_and_times(self, tmp_path: Path) -> None:
        self.open(tmp_path).write(finished())
        (run,) = self.runs(tmp_path)
        assert run.info.run_name == "tpe/0/3"
        assert run.info.end_time - run.info.start_time == 60_000

    def test_many_epochs_and_dimensions_take_several_requests(self, tmp_path: Path) -> None:
        trial = finished(params={f"p{n}": n for n in range(150)}, epochs=600)
        point = trial.curve[0]
        from dataclasses import replace

        curve = tuple(replace(point, epoch=epoch) for epoch in range(1, 601))
        self.open(tmp_path).write(replace(trial, curve=curve))
        (held,) = self.held(tmp_path)
        assert len(held.params) == 150
        assert len(held.curves["accuracy"]) == 600

    def test_a_run_that_somebody_deleted_stays_deleted(self, tmp_path: Path) -> None:
        self.open(tmp_path).write(finished())
        (run,) = self.runs(tmp_path)
        self.client(tmp_path).delete_run(run.info.run_id)
        assert self.open(tmp_path).known() == {41}

    def test_an_experiment_that_was_deleted_there_is_not_made_again(self, tmp_path: Path) -> None:
        self.open(tmp_path)
        client = self.client(tmp_path)
        client.delete_experiment(client.get_experiment_by_name(ORIGIN.experiment).experiment_id)
        with pytest.raises(SinkError, match="was deleted there"):
            self.open(tmp_path)

    def test_what_mlflow_raises_is_the_sinks_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        sink = self.open(tmp_path)

        def refuse(*_: object, **__: object) -> None:
            raise ConnectionError("refused")

        monkeypatch.setattr(MlflowClient, "create_run", refuse)
        with pytest.raises(SinkError, match="ConnectionError: refused"):
            sink.write(finished())


def test_a_place_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(SinkError):
        MlflowSink("nothing://here", ORIGIN)
