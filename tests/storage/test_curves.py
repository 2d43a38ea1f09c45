"""Curves: one point per epoch, read as the ledger wrote it."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest

from storage.batched_ledger import BatchedLedger
from storage.curves import Curves
from storage.errors import ValueRefused
from storage.ledger import EpochWrite, Lease


@pytest.fixture
def curves(database, experiment) -> Curves:
    return Curves(database)


@pytest.fixture
def ledger(database, experiment, optuna_storage) -> BatchedLedger:
    for name in ("e/random/0", "e/tpe/0"):
        optuna.create_study(storage=optuna_storage, study_name=name)
    return BatchedLedger(database)


@pytest.fixture
def lease(ledger) -> Lease:
    (lease,) = ledger.claim("e/tpe/0", ledger.register("w"), waiting=0, new=1)
    return lease


def test_what_was_written_is_read(curves, ledger, lease, report):
    written = report(train_loss=1 / 3, metrics={"accuracy": 0.1 + 0.2})
    ledger.write(epochs=[EpochWrite(lease=lease, report=written, value=0.3)])
    (record,) = curves.of_trial(lease.trial_id)
    assert (record.study_name, record.trial_number, record.attempt) == ("e/tpe/0", 0, 1)
    for field in dataclasses.fields(report()):
        assert getattr(record, field.name) == getattr(written, field.name)


def test_what_is_not_finite_is_none(curves, ledger, lease, report):
    said = report(train_loss=None, validation_loss=None, gradient_norm=None, diverged=True)
    ledger.write(epochs=[EpochWrite(lease=lease, report=said, value=0.0)])
    (record,) = curves.of_trial(lease.trial_id)
    assert (record.train_loss, record.validation_loss, record.gradient_norm) == (None, None, None)
    assert record.diverged


@pytest.mark.parametrize("wrong", [{"epoch": 0}, {"seconds": -1.0}, {"images_per_second": -1.0}])
def test_what_cannot_be_is_refused(curves, ledger, lease, report, wrong):
    with pytest.raises(ValueRefused):
        ledger.write(epochs=[EpochWrite(lease=lease, report=report(**wrong), value=0.5)])
    assert curves.of_trial(lease.trial_id) == []


def test_numpys_numbers_are_numbers(curves, ledger, lease, report):
    said = report(
        epoch=np.int64(1),
        train_loss=np.float32(0.5),
        seconds=np.float64(0.25),
        metrics={"accuracy": np.float32(0.5)},
        diverged=np.bool_(False),
    )
    ledger.write(epochs=[EpochWrite(lease=lease, report=said, value=np.float32(0.5))])
    (record,) = curves.of_trial(lease.trial_id)
    assert (record.train_loss, record.seconds, record.metrics) == (0.5, 0.25, {"accuracy": 0.5})


def test_order_and_extent_of_what_is_read(curves, ledger, experiment, report):
    worker = ledger.register("w")
    first, second = ledger.claim("e/tpe/0", worker, waiting=0, new=2)
    (other,) = ledger.claim("e/random/0", worker, waiting=0, new=1)
    for lease in (second, first, other):
        ledger.write(
            epochs=[EpochWrite(lease=lease, report=report(epoch=epoch), value=0.5) for epoch in (1, 2)]
        )

    def points(records):
        return [(record.study_name, record.trial_number, record.epoch) for record in records]

    tpe = [("e/tpe/0", 0, 1), ("e/tpe/0", 0, 2), ("e/tpe/0", 1, 1), ("e/tpe/0", 1, 2)]
    assert points(curves.of_study("e/tpe/0")) == tpe
    assert points(curves.of_experiment(experiment.id)) == [("e/random/0", 0, 1), ("e/random/0", 0, 2), *tpe]
    assert points(curves.of_trial(second.trial_id)) == tpe[2:]
    assert curves.of_experiment(experiment.id + 1) == []
