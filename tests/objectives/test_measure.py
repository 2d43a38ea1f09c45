"""A measurement is short, and of the config that it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from objectives import measure
from objectives.base import Choice, DataSpec, Task, TrialConfig, TrialError
from objectives.measure import MOST_IMAGES, images_per_second
from objectives.training import Step, Training

TASK = Task(data=DataSpec(name="digits"))
SMALL = TrialConfig(model=Choice("cnn", {"depth": 1, "width": 2, "dense": 0}))


class Clock:
    """Each look at it takes a hundredth of a second."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now


def test_a_measurement_takes_about_the_time_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    assert images_per_second(TASK, SMALL, seconds=0.2, device="cpu") > 0
    assert 0.2 <= clock.now < 0.25, "a look at the clock after each step, and few more"


def test_a_larger_model_is_slower() -> None:
    large = dataclasses.replace(SMALL, model=Choice("cnn", {"width": 64}))
    assert images_per_second(TASK, SMALL, 0.1, "cpu") > 2 * images_per_second(TASK, large, 0.1, "cpu")


@pytest.mark.parametrize("choice", [{"batch_size": None}, {"optimizer": Choice("gradient_descent")}])
def test_full_batches_are_measured_in_smaller_ones(
    choice: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step over all images of a large dataset would take far longer than the measurement may."""
    sizes = set()

    class Watched(Training):
        def steps(self, epoch: int) -> Iterator[Step]:
            for step in super().steps(epoch):
                sizes.add(step.images)
                yield step

    monkeypatch.setattr("objectives.measure.training_for", Watched)
    images_per_second(TASK, dataclasses.replace(SMALL, **choice), 0.05, "cpu")
    assert max(sizes) == MOST_IMAGES


def test_what_can_not_be_trained_can_not_be_measured() -> None:
    with pytest.raises(TrialError, match="too small"):
        images_per_second(TASK, dataclasses.replace(SMALL, model=Choice("cnn", {"depth": 9})))
