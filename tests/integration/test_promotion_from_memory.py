"""A whole run whose trials are promoted from their worker's memory, and the same by their files."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from objectives import checkpoint_files, checkpoints
from objectives.base import TrialStart
from objectives.fused.choose import LEAST_GAIN
from objectives.fused.engine import FusedEngine
from search.control import crew
from search.control.crew import Assignment, work
from search.trials.copies import Copies
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from tests.contracts.experiments import prepared
from tests.integration.test_promotion_run import digits


def counted(counts: Counter[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        counts[name] += 1
        return call(*given, **named)

    return noted


def test_promotions_read_no_file_and_change_no_bit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_GAIN, "cpu", 0.0)  # whatever clocks say
    counts: Counter[str] = Counter()
    monkeypatch.setattr(checkpoints, "load", counted(counts, "loaded", checkpoints.load))
    monkeypatch.setattr(
        checkpoint_files, "_is_whole", counted(counts, "looked at", checkpoint_files._is_whole)
    )
    admit = FusedEngine.admit

    def noted(engine: FusedEngine, start: TrialStart) -> None:
        counts["went on"] += start.checkpoint is not None
        admit(engine, start)

    monkeypatch.setattr(FusedEngine, "admit", noted)

    def curves(name: str) -> dict[tuple[int, int], tuple[Any, ...]]:
        counts.clear()
        spec = digits(experiment=name, pruner={"name": "asha_promotion", "eta": 2})
        with prepared(database, spec) as running:
            assert work(Assignment(database.url, name, "fused", "cpu"), "w", threading.Event()) == "exhausted"
            assert check_history(database, running.experiment.id, at_rest=True) == []
            points = Curves(database).of_experiment(running.experiment.id)
            return {
                (p.trial_number, p.epoch): (p.train_loss, p.validation_loss, p.gradient_norm, p.metrics)
                for p in points
            }

    remembered = curves("remembered")
    assert counts["went on"] >= 2
    assert (counts["loaded"], counts["looked at"]) == (0, 0)
    monkeypatch.setattr(crew, "Copies", lambda: Copies(lambda _: 0))
    read = curves("read")
    assert counts["loaded"] == counts["looked at"] == counts["went on"] >= 2
    # Who is promoted depends on who comes when; what an epoch gives, on nothing.
    both = remembered.keys() & read.keys()
    assert {epoch for _, epoch in both} >= {1, 2, 3, 4}
    assert all(remembered[point] == read[point] for point in both)
