"""Which trials a worker remembers as they leave: those that pause, as they were saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from objectives.base import StateCopy
from search.trials.claims import Claim
from search.trials.copies import Copies, Held
from search.work.saving import Saver
from search.work.worker import Worker
from tests.contracts.claims import lease_of, report_of
from tests.contracts.fake_engine import FakeEngine
from tests.search.work.worker_source import NEVER, TASK, Source


class Copying(FakeEngine):
    """Says of a copy how far its trial was."""

    def copy_of(self, trial_id: int) -> StateCopy:
        _, epoch = self._held[trial_id]
        return StateCopy("fingerprint", report_of(epoch), f"copied {epoch}", 10)


class Pausing(Source):
    """Trials that pause after two of three epochs, but for trial 1."""

    def claim(self, number: int) -> Claim:
        return replace(super().claim(number), until=None if number == 1 else 2)


def work(source: Source, engine: FakeEngine) -> Copies:
    copies = Copies(lambda _: 100)
    Worker(source, engine, Saver(NEVER), judged=False, copies=copies).run()
    return copies


def taken(copies: Copies, number: int, last_step: int = 2) -> Held | None:
    return copies.take(lease_of(number, attempt=2, last_step=last_step), "fingerprint")


def test_what_pauses_is_remembered_with_its_file_and_the_rest_is_not(tmp_path: Path) -> None:
    copies = work(Pausing(3, tmp_path), Copying(TASK))
    assert len(copies) == 2
    assert taken(copies, 1) is None
    for number in (0, 2):
        kept = taken(copies, number)
        assert kept is not None
        assert (kept.copy.state, kept.attempt) == ("copied 2", 1)
        assert kept.path is not None
        assert kept.path == kept.path.parent / "2-1.pt"
        assert kept.path.is_file(), "the file is there first"


def test_what_leaves_because_its_worker_was_told_to_is_not_remembered(tmp_path: Path) -> None:
    source = Pausing(3, tmp_path, stop_after=4)  # trial 0 rests by then, and trial 1 has trained an epoch
    copies = work(source, Copying(TASK))
    assert ("leaves", 1, 2) in source.said
    assert len(copies) == 1
    assert taken(copies, 0) is not None


def test_where_no_file_can_be_written_the_copy_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    copies = work(Pausing(1, tmp_path / "file"), Copying(TASK))
    kept = taken(copies, 0)
    assert kept is not None
    assert kept.path is None


def test_an_engine_that_copies_nothing_pauses_trials_all_the_same(tmp_path: Path) -> None:
    source = Pausing(1, tmp_path)
    assert len(work(source, FakeEngine(TASK))) == 0
    assert ("leaves", 0, 2) in source.said
