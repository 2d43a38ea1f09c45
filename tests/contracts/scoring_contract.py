"""What an engine of image trials keeps about the sealed test images: inherit `ScoringContract`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from objectives.base import Engine, EpochEnd, TrialFailure, TrialStart
from objectives.metrics import worst_metrics
from objectives.sources import DataError
from objectives.trainer import score_on_test
from tests.contracts.engine_contract import DIVERGING, GOOD, TASK, MakeEngine, advance_to_end_of, trial


def asked(start: TrialStart) -> TrialStart:
    return dataclasses.replace(start, score_test=True)


def events_of(engine: Engine, starts: Sequence[TrialStart]) -> dict[int, list[EpochEnd | TrialFailure]]:
    """Everything that is said of each trial until all have ended."""
    said: dict[int, list[EpochEnd | TrialFailure]] = {start.trial_id: [] for start in starts}
    for start in starts:
        engine.admit(start)
    left = set(said)
    while left:
        for event in engine.advance():
            said[event.trial_id].append(event)
            if isinstance(event, TrialFailure):
                left.discard(event.trial_id)
            elif event.last:
                engine.retire(event.trial_id)
                left.discard(event.trial_id)
    return said


class ScoringContract:
    """The suite; every test gets engines of its own."""

    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        raise NotImplementedError

    def test_scores_the_last_epoch_as_one_training_by_hand(self, make_engine: MakeEngine) -> None:
        events = events_of(make_engine(TASK), [asked(trial(1))])[1]
        ends = [event for event in events if isinstance(event, EpochEnd)]
        assert [end.test is None for end in ends] == [True, True, False]
        found, expected = ends[-1].test, score_on_test(TASK, GOOD, 1, 5)
        assert found is not None
        assert (found.epochs, found.images) == (expected.epochs, expected.images) == (3, 359)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-4)
        assert found.validation == ends[-1].report.metrics

    def test_reads_nothing_unasked(self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        def sealed(*_: object) -> None:
            raise AssertionError("the test images were read")

        for module in ("objectives.trainer", "objectives.fused.lanes"):
            monkeypatch.setattr(f"{module}.load_test", sealed)
        events = events_of(make_engine(TASK), [trial(1)])[1]
        assert all(isinstance(event, EpochEnd) and event.test is None for event in events)

    def test_a_diverged_trial_has_the_worst(self, make_engine: MakeEngine) -> None:
        (event,) = events_of(make_engine(TASK), [asked(trial(1, DIVERGING))])[1]
        assert isinstance(event, EpochEnd)
        assert event.test is not None
        assert event.test.metrics == worst_metrics()

    def test_a_trial_saved_after_its_last_epoch_is_scored_when_it_goes_on(
        self, make_engine: MakeEngine, tmp_path: Path
    ) -> None:
        engine = make_engine(TASK)
        engine.admit(asked(trial(1)))
        end = None
        while end is None or not end.last:
            end = advance_to_end_of(engine, 1)
        engine.save(1, tmp_path / "checkpoint")
        again = dataclasses.replace(asked(trial(1)), checkpoint=tmp_path / "checkpoint")
        (event,) = events_of(make_engine(TASK), [again])[1]
        assert isinstance(event, EpochEnd)
        assert event.test is not None
        assert end.test is not None
        assert event.test.metrics == end.test.metrics

    def test_missing_images_fail_the_trial_alone(
        self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: object) -> None:
            raise DataError("data.root", "there are no test images", "download them")

        for module in ("objectives.trainer", "objectives.fused.lanes"):
            monkeypatch.setattr(f"{module}.load_test", missing)
        engine = make_engine(TASK)
        starts = [asked(trial(1)), trial(2)][: engine.free_slots]
        said = events_of(engine, starts)
        failure = said[1][-1]
        assert isinstance(failure, TrialFailure)
        assert "no test images" in failure.reason
        for start in starts[1:]:
            assert len(said[start.trial_id]) == GOOD.epochs
