"""A trial by recorded passes is the trial, to the bit; and what can't be recorded is trained as it is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from objectives import graphed
from objectives.base import Choice, EpochReport, TrialStart
from objectives.devices import reproducible
from objectives.fused import choose
from objectives.graphed import RecordedTraining, training_for
from objectives.recording import Recording, RecordingError, Work, recorder_for
from objectives.trainer import train_epoch
from objectives.training import Training, _Steps
from tests.contracts.engine_contract import what_counts
from tests.contracts.parity_contract import CPU, PAIRS, data_of, plain_training, small_cnn, tiny
from tests.contracts.recorders import Forgetful, Strict, Waits


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    graphed._say_once.cache_clear()


def by_hand(
    start: TrialStart, recorder: object = None, allow_imports: tuple[str, ...] = ()
) -> RecordedTraining:
    data = data_of(start.split_seed, torch.float32)
    used = recorder or Strict(watched=1)
    return RecordedTraining(start.config, start.seed, data, allow_imports, recorder=used)  # type: ignore[arg-type]


def curve(training: Training) -> list[EpochReport]:
    return [what_counts(train_epoch(training)) for _ in range(training.config.epochs)]


def state(training: Training) -> list[Tensor]:
    return [*training.model.state_dict().values()]


@pytest.mark.parametrize("first", range(8))
def test_recorded_trials_are_the_plain_ones_for_every_loss_and_optimizer(first: int) -> None:
    """With batch normalisation, dropout, augmentation, all regularisers, last batches of another size."""
    for number, pair in list(enumerate(PAIRS))[first::8]:
        start = tiny(number, *pair, epochs=2, batch_size=(48, 64, 56)[number % 3])
        recorder = Strict(watched=1)
        recorded, plain = by_hand(start, recorder), plain_training(start)
        assert curve(recorded) == curve(plain)
        assert all(map(torch.equal, state(recorded), state(plain)))
        full = start.config.optimizer.name == "gradient_descent"  # all images: a step per epoch
        assert recorded.why_unrecorded is None
        assert recorder.recordings == (1 if full else 2)
        assert recorder.replays >= (1 if full else 4)


def test_in_lower_precision_too() -> None:
    start = tiny(2, "focal", "adam", epochs=2, batch_size=32)
    data = data_of(0, torch.float32)
    both = [
        RecordedTraining(start.config, 1, data, precision="bf16", recorder=Strict()),
        Training(start.config, 1, data, precision="bf16"),
    ]
    assert curve(both[0]) == curve(both[1])


@pytest.mark.parametrize("at", [0, 1])
def test_what_can_not_be_recorded_is_trained_as_it_is(at: int, caplog: pytest.LogCaptureFixture) -> None:
    strict = Strict()

    def failing(work: Work) -> Recording:
        if strict.recordings >= at:
            strict(work)  # a capture that fails has done the work a few times
            raise RecordingError("operation not permitted")
        return strict(work)

    start = tiny(1, "cross_entropy", "adam", batch_size=48)
    with caplog.at_level(logging.WARNING):
        trained = [by_hand(start, failing) for _ in range(2)]
        curves = [curve(training) for training in trained]
    assert curves == [curve(plain_training(start))] * 2
    assert [training.why_unrecorded for training in trained] == ["operation not permitted"] * 2
    assert caplog.text.count("operation not permitted") == 1


def noisy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none") * (0.5 + torch.rand(()))


def own_model(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, classes))


@pytest.fixture
def users_own() -> Iterator[None]:
    module = ModuleType("users_own")
    module.noisy_loss, module.own_model = noisy_loss, own_model  # type: ignore[attr-defined]
    sys.modules["users_own"] = module
    yield
    del sys.modules["users_own"]


@pytest.mark.parametrize("change", [{"loss": "noisy_loss"}, {"model": "own_model"}])
def test_what_users_bring_is_not_recorded(
    change: dict[str, str], users_own: None, caplog: pytest.LogCaptureFixture
) -> None:
    start = tiny(1, "mse", "sgd", **{key: Choice(f"users_own:{name}") for key, name in change.items()})
    recorder = Strict()
    with caplog.at_level(logging.WARNING):
        recorded = by_hand(start, recorder, ("users_own",))
    plain = Training(start.config, start.seed, recorded.data, ("users_own",))
    assert curve(recorded) == curve(plain)
    assert recorder.recordings == 0
    assert "of the user's own" in caplog.text


def test_a_batch_of_several_pieces_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("objectives.training.FORWARD_IMAGES", 40)
    start = tiny(1, "mse", "adam", batch_size=None, model=small_cnn())
    recorder = Strict()
    assert curve(by_hand(start, recorder)) == curve(plain_training(start))
    assert recorder.recordings == 0


def test_a_trial_that_is_restored_goes_on_as_it_would_have() -> None:
    start = tiny(1, "mse", "adam", batch_size=48)
    first = by_hand(start)
    reports = curve(first)
    early = by_hand(start)
    train_epoch(early)
    late = by_hand(start)
    train_epoch(late)  # what it recorded reads parameters that keep their places
    train_epoch(late)
    late.restore(early.state(), 1)
    assert [what_counts(train_epoch(late)) for _ in range(2)] == reports[1:]


def test_what_passes_read_stays_where_it_is() -> None:
    recorder = Forgetful()
    train_epoch(by_hand(tiny(2, "focal", "adam", batch_size=16, class_weights="balanced"), recorder))
    assert recorder.read > 8 * 10


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("number", range(1, 64, 9))  # not those that take one step per epoch
def test_no_step_waits_for_the_device(recorded: bool, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tiny(number, *PAIRS[number], epochs=2, batch_size=8)
    training = by_hand(start, Strict(watched=0)) if recorded else plain_training(start)
    taken = training.steps(1)
    sums = _Steps(every=4)
    for _ in range(2):  # an optimizer makes its state, a recorder records
        sums.add(next(taken))
    counts = [kept["step"] for kept in training._optimizer.state.values() if "step" in kept]  # on the host
    with Waits(monkeypatch, counts) as waits:
        for step in taken:
            sums.add(step)
    assert waits.seen == []
    sums.look()
    expected = plain_training(start).train_epoch()
    assert sums.loss == pytest.approx(expected.loss)
    assert sums.images == expected.images


def test_a_look_at_losses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above could fail."""
    kept = torch.ones(3)
    for ask in (Tensor.tolist, lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: bool(t.sum())):
        with Waits(monkeypatch) as waits:
            ask(kept)
        assert waits.seen


def test_a_divergence_is_seen_one_look_later() -> None:
    start = tiny(1, "mse", "sgd", learning_rate=1e30, batch_size=8, model=small_cnn())
    sums = _Steps(every=4)
    taken = 0
    for step in plain_training(start).steps(1):
        sums.add(step)
        taken += 1
        if not sums.finite:
            break
    assert taken == 8
    assert sums.images == 4 * 8


def test_a_plan_says_what_is_not_recorded_on_a_gpu() -> None:
    own = tiny(1, "mse", "sgd", model=Choice("users_own:own_model")).config
    gpu = torch.device("cuda")
    assert graphed.why_not(own, CPU) is None
    assert graphed.why_not(tiny(1, "mse", "sgd").config, gpu) is None
    unrecorded = graphed.why_not(own, gpu)
    assert unrecorded is not None
    assert choose._with("slower", unrecorded) == f"slower (steps are not recorded: {unrecorded})"
    assert choose._with("slower", None) == "slower"
    assert choose._with(None, unrecorded) is None


def test_on_a_cpu_nothing_is_recorded() -> None:
    start = tiny(1, "mse", "sgd")
    assert recorder_for(CPU) is None
    assert type(training_for(start.config, 1, data_of(0, torch.float32))) is Training
