"""A user's own modules in the plain engine: seeded, kept apart, saved whole, and refused with a reason."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from objectives.base import Choice, derive_seed
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import GOOD, run, trial
from tests.objectives.users_modules import USERS_MODEL, USERS_TASK, only_failure


def test_a_users_module_sees_the_epochs_seed(user_module: ModuleType) -> None:
    seen = set()

    class Curious(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.add(torch.initial_seed())
            return super().forward(images.flatten(1))

    user_module.model = lambda shape, classes: Curious(64, classes)  # type: ignore[attr-defined]
    run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])
    assert seen == {derive_seed(1, "module", epoch) for epoch in (1, 2, 3)}


def test_a_users_module_gives_the_same_curve_whatever_came_before(user_module: ModuleType) -> None:
    """`nn.Dropout` draws from the process's random numbers, which are seeded for every epoch."""
    user_module.model = lambda shape, classes: nn.Sequential(  # type: ignore[attr-defined]
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes)
    )
    first = run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])[1]
    torch.rand(10)
    assert run(PlainEngine(USERS_TASK, "cpu"), [trial(2, USERS_MODEL), trial(1, USERS_MODEL)])[1] == first


def test_a_users_module_leaves_no_settings_behind(user_module: ModuleType) -> None:
    class Meddler(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch.set_num_threads(3)
            torch.use_deterministic_algorithms(True)
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(0)
            return super().forward(images.flatten(1))

    user_module.model = lambda shape, classes: Meddler(64, classes)  # type: ignore[attr-defined]
    before, random_state = torch.get_num_threads(), torch.get_rng_state()
    engine = PlainEngine(USERS_TASK, "cpu")
    engine.admit(trial(1, USERS_MODEL))
    engine.advance()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), random_state)


def test_buffers_that_are_not_persistent_are_saved_too(user_module: ModuleType, tmp_path: Path) -> None:
    class Counter(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen += 1
            return super().forward(images.flatten(1)) * (1 + self.seen)

    user_module.model = lambda shape, classes: Counter(64, classes)  # type: ignore[attr-defined]
    whole = run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])[1]
    engine = PlainEngine(USERS_TASK, "cpu")
    engine.admit(trial(1, USERS_MODEL))
    engine.advance()
    engine.save(1, tmp_path / "a checkpoint")
    resumed = dataclasses.replace(trial(1, USERS_MODEL), checkpoint=tmp_path / "a checkpoint")
    assert run(PlainEngine(USERS_TASK, "cpu"), [resumed])[1] == whole[1:]


def test_a_users_factory_must_make_a_new_module_every_time(user_module: ModuleType) -> None:
    """Else a trial would start with what another has learnt."""
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    user_module.model = lambda shape, classes: one  # type: ignore[attr-defined]
    run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])
    assert "must make a new module" in only_failure(USERS_MODEL).reason


def test_a_users_exit_ends_the_trial_only(user_module: ModuleType) -> None:
    user_module.model = lambda shape, classes: sys.exit(3)  # type: ignore[attr-defined]
    assert "SystemExit: 3" in only_failure(USERS_MODEL).reason


def test_numpy_and_python_are_seeded_for_a_users_module_too(user_module: ModuleType) -> None:
    class Noisy(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.flatten(1)) * np.random.rand() * random.random()

    def factory(shape: object, classes: int) -> nn.Module:
        model = Noisy(64, classes)
        nn.init.constant_(model.bias, random.random())
        return model

    user_module.model = factory  # type: ignore[attr-defined]
    first = run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])
    np.random.seed(1)
    random.seed(1)
    assert run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)]) == first
    after = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    assert (np.random.rand(), random.random()) == after


@pytest.mark.parametrize(
    ("in_training", "got"),
    [
        (lambda scores: (scores, scores), "tuple"),
        (lambda scores: scores[:1], r"\(1, 10\)"),  # mse and hinge would broadcast it
        (lambda scores: scores[:, :5], r"\(32, 5\)"),
    ],
)
def test_a_users_module_must_give_scores_in_training_too(
    user_module: ModuleType, in_training: Callable[[torch.Tensor], object], got: str
) -> None:
    class TwoFaced(nn.Linear):
        def forward(self, images: torch.Tensor) -> object:
            scores = super().forward(images.flatten(1))
            return in_training(scores) if self.training else scores

    user_module.model = lambda shape, classes: TwoFaced(64, classes)  # type: ignore[attr-defined]
    failure = only_failure(dataclasses.replace(USERS_MODEL, loss=Choice("mse")))
    assert re.search(rf"scores of shape \(32, 10\) for 32 images; in training it gave {got}", failure.reason)
    assert not failure.retryable


def test_metrics_are_of_the_scores_that_a_users_loss_was_given(user_module: ModuleType) -> None:
    def pure(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(-logits_BK, labels_B, reduction="none")

    def careless(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits_BK.neg_(), labels_B, reduction="none")

    curves = []
    for loss in (pure, careless):
        user_module.loss = loss  # type: ignore[attr-defined]
        config = dataclasses.replace(GOOD, loss=Choice("users_own:loss"))
        curves.append(run(PlainEngine(USERS_TASK, "cpu"), [trial(1, config)]))
    assert curves[0] == curves[1]


def test_a_users_module_that_raises_fails_its_trial(user_module: ModuleType) -> None:
    class Broken(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("my own mistake")
            return super().forward(images.flatten(1))

    user_module.model = lambda shape, classes: Broken(64, classes)  # type: ignore[attr-defined]
    failure = only_failure(USERS_MODEL)
    assert failure.reason == "ValueError: my own mistake"
    assert 'raise ValueError("my own mistake")' in failure.traceback
    assert not failure.retryable


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("memory"), False),
    ],
)
def test_only_lack_of_memory_is_worth_another_try(
    user_module: ModuleType, error: Exception, retryable: bool
) -> None:
    def model(shape: object, classes: int) -> nn.Module:
        raise error

    user_module.model = model  # type: ignore[attr-defined]
    assert only_failure(USERS_MODEL).retryable is retryable


def test_an_allocation_that_no_machine_can_serve_is_lack_of_memory(user_module: ModuleType) -> None:
    user_module.model = lambda shape, classes: nn.Linear(2**40, 2**10)  # type: ignore[attr-defined]
    assert only_failure(USERS_MODEL).retryable
