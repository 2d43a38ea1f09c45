"""Which experiments a worker serves that was not hired, and when it has nothing more to do."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from objectives.base import ObjectiveError
from objectives.choices import ProgramChoice, ProgramKey
from objectives.devices import processor
from search.control.controller import find_or_create
from search.control.crew import Assignment
from search.experiment.spec import load_spec
from search.launch import joining
from search.launch.joining import Joined, over, serviceable
from search.trials.precisions import ANY_BATCH
from search.work.programs import StoredChoices
from storage.database import Database
from storage.errors import DatabaseUnsuitable
from storage.experiments import Experiments
from storage.programs import PRECISION
from storage.records import ExperimentRecord, ExperimentState
from tests.contracts.database_roles import roles_in
from tests.contracts.experiments import small_spec
from tests.contracts.fake_engine import FAKE
from tests.contracts.shoal_command import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(number: int, state: ExperimentState, *, stop: bool = False) -> ExperimentRecord:
    return ExperimentRecord(
        id=number,
        name=f"e{number}",
        spec={},
        space_hash="",
        state=state,
        stop_requested=stop,
        created_at=NOW,
        updated_at=NOW,
        environment={},
    )


def test_the_oldest_first_of_those_that_are_begun_or_to_begin() -> None:
    records = [
        record(3, "running"),
        record(1, "finished"),
        record(2, "created"),
        record(4, "running", stop=True),
    ]
    assert [one.id for one in serviceable(records, ())] == [2, 3]
    assert [one.id for one in serviceable(records, {2})] == [3], "it gave nothing a moment ago"


@pytest.mark.parametrize(
    ("states", "ended"),
    [
        (["finished", "failed", "stopped"], True),
        (["finished", "running"], False),
        (["created"], False),
    ],
)
def test_over_when_all_have_ended(states: list[ExperimentState], ended: bool) -> None:
    assert over([record(number, state) for number, state in enumerate(states)]) is ended


def test_a_role_that_may_only_read_is_no_experiments_matter(database_url: str, tmp_path: Path) -> None:
    """It leaves and says so, instead of waiting for an experiment that it could serve."""
    urls = roles_in(database_url, tmp_path / "roles")
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny("tiny"), encoding="utf-8")
    with Database(urls.owner) as owner:
        find_or_create(Experiments(owner), load_spec(file))
    with Database(urls.reader) as reader, pytest.raises(DatabaseUnsuitable, match="shoal_worker"):
        Joined(
            reader,
            [],
            Assignment(urls.reader, "", "plain", "cpu"),
            worker="w",
            interrupted=threading.Event(),
            idle_seconds=0.1,
            abandon=lambda _reason: None,
            tell=lambda _said: None,
        ).run()


def compute_in(database: Database, experiment_id: int, precision: str) -> None:
    """As if a worker had begun it on this machine's processor."""
    key = ProgramKey(PRECISION, ANY_BATCH, processor())
    StoredChoices(database, experiment_id).put(key, ProgramChoice(fused=False, reason=precision))


class TestPrecision:
    """A worker that was told a precision, and no names."""

    def joined(self, database: Database, said: list[str], idle_seconds: float) -> Joined:
        return Joined(
            database,
            [],
            Assignment(database.url, "", FAKE, "cpu", precision="bf16"),
            worker="w",
            interrupted=threading.Event(),
            idle_seconds=idle_seconds,
            abandon=lambda _reason: None,
            tell=said.append,
        )

    def test_it_leaves_those_of_another_to_others_and_says_so_once(
        self, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(joining, "LOOK_SECONDS", 0.01)
        names = ("in_fp32", "in_bf16", "not_begun")
        experiments = Experiments(database)
        first, second, _ = (
            find_or_create(experiments, small_spec(experiment=name, replicates=1))[0] for name in names
        )
        compute_in(database, first.id, "fp32")
        compute_in(database, second.id, "bf16")
        said: list[str] = []
        assert self.joined(database, said, idle_seconds=0.2).run().reason == "idle"
        assert [said_of for said_of in said if "in_fp32 is" in said_of] == [
            "in_fp32 is computed in fp32: left to workers that don't ask for bf16"
        ]
        states = [experiments.get(name).state for name in names]
        assert states == ["created", "finished", "finished"]
        assert caplog.records == []

    def test_it_looks_again_when_the_experiment_changes(self, database: Database) -> None:
        experiments = Experiments(database)
        record, _ = find_or_create(experiments, small_spec(replicates=1))
        compute_in(database, record.id, "fp32")
        said: list[str] = []
        worker = self.joined(database, said, 1.0)
        asked: list[str] = []

        def looked() -> bool:
            before = len(asked)
            assert worker._declines(experiments.get(record.name))
            return len(asked) > before

        with pytest.MonkeyPatch.context() as patch:
            real = joining.other_precision
            patch.setattr(joining, "other_precision", lambda *args: (asked.append("once"), real(*args))[1])
            assert [looked(), looked()] == [True, False]
            experiments.set_state(record.id, "running")
            assert [looked(), looked()] == [True, False]
        assert len(said) == 1

    def test_what_somebody_else_decides_in_between_is_no_error(
        self, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The worker found nothing decided, and was refused when it began."""
        record, _ = find_or_create(Experiments(database), small_spec(replicates=1))

        def refused(*_args: object, **_options: object) -> str:
            compute_in(database, record.id, "fp32")
            raise ObjectiveError("trials of this experiment are computed in fp32")

        monkeypatch.setattr(joining, "work", refused)
        said: list[str] = []
        worker = self.joined(database, said, idle_seconds=0.1)
        assert worker.run().reason == "idle"
        assert [one for one in said if "can't be served" in one] == []
        assert sum("computed in fp32" in one for one in said) == 1
        assert caplog.records == []
