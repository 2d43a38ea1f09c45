"""Curves: one point per epoch, from an attempt that runs, with finite numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from storage.attempts import Attempts
from storage.curves import Curves
from storage.errors import AttemptLost, ValueRefused


@pytest.fixture
def curves(database, experiment) -> Curves:
    return Curves(database)


@pytest.fixture
def attempts(database, experiment) -> Attempts:
    return Attempts(database)


@pytest.fixture
def worker(attempts):
    with attempts.worker("w") as worker:
        yield worker


def test_what_was_written_is_read(curves, attempts, worker, report):
    attempts.begin("e/tpe/0", 10, 3, worker)
    written = report(train_loss=1 / 3, metrics={"accuracy": 0.1 + 0.2})
    curves.write(10, 1, written)
    (record,) = curves.of_trial(10)
    assert (record.study_name, record.trial_number, record.attempt) == ("e/tpe/0", 3, 1)
    for field in dataclasses.fields(report):
        assert getattr(record, field.name) == getattr(written, field.name)


def test_what_is_not_finite_is_none_or_refused(curves, attempts, worker, report):
    attempts.begin("e/tpe/0", 10, 0, worker)
    curves.write(10, 1, report(train_loss=None, validation_loss=None, gradient_norm=None, diverged=True))
    (record,) = curves.of_trial(10)
    assert (record.train_loss, record.validation_loss, record.gradient_norm) == (None, None, None)
    assert record.diverged
    numbers = (
        "train_loss",
        "validation_loss",
        "gradient_norm",
        "learning_rate",
        "seconds",
        "images_per_second",
    )
    for name in numbers:
        for value in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(ValueRefused):
                curves.write(10, 1, report(epoch=2, **{name: value}))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueRefused):
            curves.write(10, 1, report(epoch=2, metrics={"accuracy": value}))
    with pytest.raises(ValueRefused):
        curves.write(10, 1, report(epoch=0))
    with pytest.raises(ValueRefused):
        curves.write(10, 1, report(epoch=2, seconds=-1.0))
    assert len(curves.of_trial(10)) == 1


def test_numpys_numbers_are_numbers(curves, attempts, worker, report):
    attempts.begin("e/tpe/0", 10, 0, worker)
    curves.write(
        10,
        1,
        report(
            epoch=np.int64(1),
            train_loss=np.float32(0.5),
            seconds=np.float64(0.25),
            metrics={"accuracy": np.float32(0.5)},
            diverged=np.bool_(False),
        ),
    )
    (record,) = curves.of_trial(10)
    assert (record.train_loss, record.seconds, record.metrics) == (0.5, 0.25, {"accuracy": 0.5})


def test_an_epoch_that_is_run_again_replaces_the_point(curves, attempts, worker, report):
    attempts.begin("e/tpe/0", 10, 0, worker)
    curves.write(10, 1, report(seconds=1.0))
    curves.write(10, 1, report(seconds=2.0))  # the answer to the first may have been lost
    attempts.end(10, 1, "released")
    attempts.begin("e/tpe/0", 10, 0, worker)
    curves.write(10, 2, report(seconds=3.0))
    (record,) = curves.of_trial(10)
    assert (record.attempt, record.seconds) == (2, 3.0)


def test_an_attempt_that_was_given_up_writes_nothing(curves, attempts, worker, report):
    attempts.begin("e/tpe/0", 10, 0, worker)
    curves.write(10, 1, report())
    attempts.mark_lost(10, 1)
    for epoch in (1, 2):
        with pytest.raises(AttemptLost):
            curves.write(10, 1, report(epoch=epoch, seconds=9.0))
    with pytest.raises(AttemptLost):
        curves.write(11, 1, report())
    (record,) = curves.of_trial(10)
    assert record.seconds == 0.25


def test_order_and_extent_of_what_is_read(curves, attempts, worker, experiment, report):
    for study, trial_id, number in (("e/tpe/0", 11, 1), ("e/tpe/0", 10, 0), ("e/random/0", 12, 0)):
        attempts.begin(study, trial_id, number, worker)
        for epoch in (2, 1):
            curves.write(trial_id, 1, report(epoch=epoch))

    def points(records):
        return [(record.study_name, record.trial_number, record.epoch) for record in records]

    tpe = [("e/tpe/0", 0, 1), ("e/tpe/0", 0, 2), ("e/tpe/0", 1, 1), ("e/tpe/0", 1, 2)]
    assert points(curves.of_study("e/tpe/0")) == tpe
    assert points(curves.of_experiment(experiment.id)) == [("e/random/0", 0, 1), ("e/random/0", 0, 2), *tpe]
    assert points(curves.of_trial(11)) == tpe[2:]
    assert curves.of_experiment(experiment.id + 1) == []
