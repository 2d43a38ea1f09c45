"""What a worker saves of its trials, and when: at intervals, at a stop, at a pause, on a full disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from search.trials.claims import Claim, Verdict
from search.work.saving import Saver
from search.work.worker import Worker
from tests.contracts.fake_engine import FakeEngine, FourSlotEngine
from tests.search.work.worker_source import ALL, NEVER, TASK, Source, worker_of


@pytest.mark.parametrize(("seconds", "waits"), [(NEVER, 0), (0.0, 2)])
def test_where_nothing_is_pruned_only_a_checkpoint_waits_for_what_was_reported(
    tmp_path: Path, seconds: float, waits: int
) -> None:
    source = Source(1, tmp_path, late=True)

    @contextmanager
    def nobody_hears() -> Iterator[None]:
        yield

    source.training = nobody_hears  # type: ignore[method-assign]
    Worker(source, FakeEngine(TASK), Saver(seconds), judged=False).run()
    assert source.of(0) == ALL
    # The first epoch and the second are saved once they are stored; the last never is.
    assert source.said.count(("waited", 0, 0)) == waits


def test_what_is_saved_is_stored(tmp_path: Path) -> None:
    """A file of an epoch that isn't would be of no use, and the one before may be an interval older."""
    source = Source(1, tmp_path, late=True)
    said: list[tuple[tuple[str, int, int], int]] = []

    class Watched(FakeEngine):
        def save(self, trial_id: int, path: Path) -> None:
            said.append((source.said[-1], self._held[trial_id][1]))
            super().save(trial_id, path)

    Worker(source, Watched(TASK), Saver(0.0), judged=False).run()
    assert said == [(("waited", 0, 0), 1), (("waited", 0, 0), 2)]
    assert [epoch for what, _, epoch in source.said if what == "epoch"] == [1, 2, 3]


def test_a_trial_that_was_taken_meanwhile_is_not_saved(tmp_path: Path) -> None:
    source = Source(1, tmp_path, late=True, verdicts={(0, 2): Verdict.TAKEN})
    worker_of(source, FakeEngine(TASK), Saver(0.0)).run()
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == ["1-1.pt"]


def _saved(folder: Path, number: int) -> list[str]:
    return sorted(path.name for path in (folder / str(number)).glob("*.pt"))


def test_stop_ends_the_epochs_and_saves(tmp_path: Path) -> None:
    source = Source(6, tmp_path, stop_after=1, late=True)
    assert worker_of(source, FourSlotEngine(TASK)).run() == "stopped"
    assert source.given == 4, "nothing is claimed after a stop"
    assert source.of(0) == [("epoch", 1), ("epoch", 2), ("leaves", 2)]
    for number in (1, 2, 3):
        assert source.of(number) == [("epoch", 1), ("leaves", 1)]
        assert _saved(tmp_path, number) == ["1-1.pt"]


def test_stopped_trials_go_on_where_they_were(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stop_after=1)
    worker_of(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ("leaves", 2)]
    source.given, source.stopping = 0, False
    worker_of(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ("leaves", 2), ALL[2]]


def test_a_trial_at_its_end_does_not_leave(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stop_after=2)
    assert worker_of(source, FakeEngine(TASK)).run() == "stopped"
    assert source.of(0) == ALL
    assert _saved(tmp_path, 0) == []


def test_stop_before_anything(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stopping=True)
    assert worker_of(source, FakeEngine(TASK)).run() == "stopped"
    assert source.given == 0


class TestCheckpoints:
    def _clock(self, moments: Sequence[float]) -> Saver:
        times = iter(moments)
        return Saver(30.0, lambda: next(times))

    def test_a_trial_is_saved_at_an_epochs_end_once_the_interval_has_passed(self, tmp_path: Path) -> None:
        source = Source(1, tmp_path)
        saved: list[int] = []

        class Watched(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                saved.append(self._held[trial_id][1])
                super().save(trial_id, path)

        # Begun at 0; the first epoch ends at 29, the second at 30 and is saved by 31.
        worker_of(source, Watched(TASK), self._clock([0.0, 29.0, 30.0, 31.0])).run()
        assert saved == [2]

    @pytest.mark.parametrize("stop", [False, True])
    def test_a_full_disk_is_told_once_and_costs_no_trial(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: bool
    ) -> None:
        class Full(FourSlotEngine):
            def save(self, trial_id: int, path: Path) -> None:
                raise OSError(28, "No space left on device")

        source = Source(4, tmp_path, stop_after=6 if stop else None)
        with caplog.at_level(logging.WARNING):
            ending = worker_of(source, Full(TASK), Saver(0.0)).run()
        assert ending == ("stopped" if stop else "exhausted")
        assert [record.message for record in caplog.records if "No space left" in record.message] != []
        assert len(caplog.records) == 1
        if not stop:
            assert [source.of(number) for number in range(4)] == [ALL] * 4

    def test_a_disk_that_is_full_again_is_told_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class FullAtTimes(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                if trial_id != 1:
                    raise OSError(28, "No space left on device")
                super().save(trial_id, path)

        with caplog.at_level(logging.WARNING):
            worker_of(Source(3, tmp_path), FullAtTimes(TASK), Saver(0.0)).run()
        assert len(caplog.records) == 2, "of the trials 0 and 2, each once"

    def test_the_older_file_stays_where_a_new_one_cannot_be_written(self, tmp_path: Path) -> None:
        class FullLater(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                if self._held[trial_id][1] > 1:
                    path.write_text("half a fi")
                    raise OSError(28, "No space left on device")
                super().save(trial_id, path)

        worker_of(Source(1, tmp_path, stop_after=2), FullLater(TASK), Saver(0.0)).run()
        assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["1-1.json", "1-1.pt"]


@pytest.mark.parametrize("judged", [True, False])
def test_a_trial_that_pauses_is_saved_and_leaves_its_slot_to_the_next(tmp_path: Path, judged: bool) -> None:
    """The second goes through where it would pause: that is where its end is."""
    pauses_after = {0: 2, 1: 3}

    class Pausing(Source):
        def claim(self, number: int) -> Claim:
            return replace(super().claim(number), until=pauses_after[number])

    source = Pausing(2, tmp_path)
    Worker(source, FakeEngine(TASK), Saver(NEVER), judged=judged).run()
    assert source.of(0) == [("epoch", 1), ("epoch", 2), ("leaves", 2)]
    assert source.of(1) == ALL
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == ["2-1.pt"]
    assert source.asked_ahead[:3] == [0, 1, 0], "ahead of a pause as of a last epoch"
