"""A fused trial is the trial: the same numbers as in the plain trainer, within what rounding does."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor

from objectives.base import Choice, TrialConfig, TrialStart
from objectives.devices import reproducible
from objectives.fused.cursors import progress
from objectives.fused.pool import Pool
from objectives.fused.scoring import Scored
from objectives.training import Scores, Training
from tests.contracts.parity_contract import (
    PAIRS,
    contiguous,
    data_of,
    fused_pool,
    gradient_of,
    plain_training,
    recorded_gradients,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)

CURVED = [pair for pair in PAIRS if pair[1] != "rmsprop"]
"""RMSprop divides by gradients near zero: it blows rounding up by orders of magnitude in any trainer."""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def lockstep(
    starts: list[TrialStart], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, **form: bool
) -> float:
    """The worst relative error of a gradient, each fused trial starting a step where its plain one stands."""
    pool = fused_pool(starts, dtype, **form)
    state = pool.program.state
    trainings = [plain_training(start, dtype) for start in starts]
    for slot, training in enumerate(trainings):
        training.train_epoch()  # a state with momentum, running statistics and all
        state.admit(slot, state.new_row(training.model))
        pool.members[slot].epoch = 1
    for training in trainings:
        next(training.steps(2))
    with recorded_gradients(monkeypatch) as gradients:
        while len(gradients) < len(starts):
            assert not [item for item in pool.step() if not hasattr(item, "start")]
            for slot in gradients.keys() & pool.members.keys():
                pool.retire(pool.members[slot])
    return max(relative(gradients[slot], gradient_of(t, pool)) for slot, t in enumerate(trainings))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_one_step_has_the_same_gradient_for_every_loss_and_optimizer(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [tiny(number, *pair) for number, pair in enumerate(PAIRS)]
    assert lockstep(starts, dtype, monkeypatch) <= tolerance


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "hinge"])
def test_both_forms_of_a_model_have_the_same_gradient(
    generic: bool, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [tiny(number, loss, "sgd", model=small_cnn()) for number in range(5)]
    assert lockstep(starts, torch.float64, monkeypatch, generic=generic) <= 1e-12


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_residual_networks_have_the_same_gradient(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Choice("resnet", {"depth": 1, "width": 4, "norm": norm, "dropout": 0.2})
    starts = [tiny(number, "cross_entropy", "sgd", model=model) for number in range(4)]
    assert lockstep(starts, torch.float64, monkeypatch) <= 1e-12


def test_an_epoch_in_double_precision_gives_the_same_weights_and_statistics() -> None:
    starts = [
        tiny(number, *pair, regulariser=Choice(("l2", "weight_decay")[number % 2]))
        for number, pair in enumerate(CURVED)
    ]
    pool = fused_pool(starts, torch.float64)
    train_epoch(pool)
    errors = {}
    for slot, start in enumerate(starts):
        training = plain_training(start, torch.float64)
        trained = training.train_epoch()
        member, state = pool.members[slot], pool.program.state
        errors[start.trial_id] = max(
            relative(state.weights_TP[slot], row_of(training, pool)),
            abs(member.sums.loss / member.sums.images - trained.loss),
            abs(member.sums.norm / member.sums.steps - trained.gradient_norm) / trained.gradient_norm,
            *(
                float((mine[slot] - theirs).abs().max())
                for mine, theirs in zip(state.buffers.values(), training.model.buffers(), strict=True)
            ),
        )
    assert max(errors.values()) <= 1e-6


def test_without_batch_statistics_cut_batches_give_the_same_weights() -> None:
    starts = [
        tiny(number, "cross_entropy", optimizer, model=small_cnn(dropout=0.3), regulariser=Choice("l2"))
        for number, optimizer in enumerate(
            ["gradient_descent", "sgd", "momentum", "nesterov", "adam", "adagrad"]
        )
    ]
    pool = fused_pool(starts, torch.float64, capacity=3)  # a batch of 160 takes four steps
    train_epoch(pool)
    for slot, start in enumerate(starts):
        training = plain_training(start, torch.float64)
        training.train_epoch()
        assert relative(pool.program.state.weights_TP[slot], row_of(training, pool)) <= 1e-9


def test_single_precision_metrics_differ_no_more_than_those_of_two_memory_layouts() -> None:
    starts = [tiny(number, *pair, strength=1e-4) for number, pair in enumerate(PAIRS)]
    pool = fused_pool(starts)
    train_epoch(pool)
    fused = scores_of(pool)
    by_layout, by_fusing = [], []
    for start in starts:
        plain = scores_after_an_epoch(plain_training(start))
        other = scores_after_an_epoch(contiguous(plain_training(start)))
        scores = fused[start.trial_id]
        by_layout.append(abs(plain - other))
        by_fusing.append(abs(plain - torch.tensor([scores.loss, scores.metrics["accuracy"]])))
    layout, fusing = torch.stack(by_layout), torch.stack(by_fusing)
    # Rounding is chance, and of 64 pairs a few amplify it: so the two samples are compared as samples.
    for share in (0.5, 0.9):
        assert (fusing.quantile(share, dim=0) <= 2 * layout.quantile(share, dim=0) + 1e-6).all()
    assert (fusing.amax(dim=0) <= 4 * layout.amax(dim=0) + 1e-3).all()


def scores_of(pool: Pool) -> dict[int, Scores]:
    """Trial → its results on its validation images."""
    found = {}
    for scored in pool.score(list(pool.members.values())):
        assert isinstance(scored, Scored)
        assert scored.scores is not None
        found[scored.member.start.trial_id] = scored.scores
    return found


def scores_after_an_epoch(training: Training) -> Tensor:
    training.train_epoch()
    scores = training.validate()
    return torch.tensor([scores.loss, scores.metrics["accuracy"]])


def test_scores_of_one_state_are_the_same() -> None:
    starts = [tiny(number, "cross_entropy", "sgd") for number in range(5)]
    pool = fused_pool(starts)
    for slot, start in enumerate(starts):
        training = plain_training(start)
        training.train_epoch()
        pool.program.state.admit(slot, pool.program.state.new_row(training.model))
        expected = training.validate()
        found = scores_of(pool)[start.trial_id]
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)


def test_the_trainers_see_the_same_images_in_the_same_order() -> None:
    config = TrialConfig(batch_size=24, augment={"flip": 0.5, "crop": 1, "cutout": 2})
    start = TrialStart(trial_id=0, config=config, seed=3, split_seed=1)
    training = plain_training(start)
    feed = fused_pool([start]).members[0].feed
    feed.start(2)
    batches = list(training._batches(feed.order, feed.chance))
    assert len(batches) == feed.steps_per_epoch
    at = 0
    for size, pieces in batches:
        found = progress(*(np.array([count]) for count in (at, feed.images, feed.batch_size, feed.piece)))
        assert (found.within, found.batch, found.left) == (0, size, size)
        for first, images_BCHW, labels_B in pieces:
            assert first == at
            augmented_BCHW = feed.augmented(first, size)
            assert augmented_BCHW is not None
            assert torch.equal(augmented_BCHW, images_BCHW)
            assert torch.equal(feed.labels(first, size), labels_B)
        at += size
    assert at == feed.images
    assert sorted(feed.order.tolist()) == data_of(1, torch.float32).training_indices.tolist()


def test_the_middle_of_the_errors_is_rounding() -> None:
    """The tolerances above are for the worst of 64 trials; the usual one is far closer."""
    starts = [tiny(number, *pair) for number, pair in enumerate(PAIRS)][::4]
    pool = fused_pool(starts, torch.float64)
    train_epoch(pool)
    errors = []
    for slot, start in enumerate(starts):
        training = plain_training(start, torch.float64)
        training.train_epoch()
        errors.append(relative(pool.program.state.weights_TP[slot], row_of(training, pool)))
    assert median(errors) <= 1e-13
