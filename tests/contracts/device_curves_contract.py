"""What a device that trains keeps of a trial's numbers: inherit `CurvesContract` and give it an `on` fixture.

    class TestOnCpu(CurvesContract):
        @pytest.fixture
        def on(self) -> TrainedDevice:
            return CpuDevice()

The reference is the plain trainer on the CPU. A GPU rounds otherwise, so that nothing is held to its bits: a
step's gradient is held to what rounding does, an epoch in float64 to 1e-6, and an epoch in float32 to a few
times what another memory layout does to the plain trainer itself.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from objectives.base import Choice, DataSpec, Engine, EpochReport, Precision, Task, TrialStart
from objectives.devices import reproducible
from objectives.fused import FusedEngine, recorded
from objectives.fused import pool as pool_module
from objectives.fused.pool import Pool
from objectives.fused.scoring import Scored
from objectives.imports import ALLOW_VARIABLE
from objectives.recording import Recording, RecordingError, Work
from objectives.trainer import PlainEngine
from objectives.training import Training
from tests.contracts.engine_contract import advance_to_end_of, run
from tests.contracts.parity_contract import (
    PAIRS,
    TASK,
    contiguous,
    fused_pool,
    gradient_of,
    plain_training,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)
from tests.contracts.trained_devices import Counting, TrainedDevice

CURVED = [(number, pair) for number, pair in enumerate(PAIRS) if pair[1] != "rmsprop"]
"""RMSprop divides by gradients near zero: it blows rounding up by orders of magnitude in any trainer."""

SAME_PIXELS = {"flip": 0.5, "translation": 0.1, "cutout": 2}
"""Augmentations that are the same to the bit on every device, which the angles of rotations are not."""

SMALL = Task(data=DataSpec(name="digits", limit=60))

KINDS = [
    tiny(0, "cross_entropy", "momentum", model=small_cnn(dropout=0.25, batch_norm=True), strength=1e-4),
    tiny(1, "focal", "adam", model=small_cnn(dropout=0.3), regulariser=Choice("l1"), strength=1e-4),
    tiny(2, "mse", "nesterov", model=small_cnn(batch_norm=True), batch_size=24, augment=SAME_PIXELS),
    tiny(3, "binary_cross_entropy", "adagrad", model=small_cnn(dropout=0.2), batch_size=48),
]
"""Trials of two architectures, whose curves rounding hardly changes: no division blows noise up in them."""


def reports(engine: Engine, starts: Sequence[TrialStart]) -> dict[int, list[EpochReport]]:
    """Each trial's reports, of which there must be nothing else."""
    found: dict[int, list[EpochReport]] = {}
    for trial_id, said in run(engine, starts).items():
        found[trial_id] = [report for report in said if isinstance(report, EpochReport)]
        assert len(found[trial_id]) == len(said), said
    return found


def assert_near(found: Sequence[EpochReport], expected: Sequence[EpochReport], by: float = 1e-3) -> None:
    """The same curve, but for rounding: of forty images, one or two may change sides."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.epoch, mine.diverged) == (theirs.epoch, theirs.diverged)
        assert mine.learning_rate == theirs.learning_rate
        for name in ("train_loss", "validation_loss", "gradient_norm"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=by), name
        assert mine.metrics["accuracy"] == pytest.approx(theirs.metrics["accuracy"], abs=0.051)


def assert_all_near(
    found: dict[int, list[EpochReport]], expected: dict[int, list[EpochReport]], by: float = 1e-3
) -> None:
    assert found.keys() == expected.keys()
    for trial_id, said in expected.items():
        assert_near(found[trial_id], said, by)


def refusing(work: Work) -> Recording:
    """Records nothing: steps are done operation by operation."""
    raise RecordingError("not here")


class Scores(nn.Module):
    """A user's model, with code of its own between its layers."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.conv(images))
        scores: Tensor = self.head(maps.mean(dim=(2, 3)))
        return scores


class DeviceContract:
    """What all contracts of devices begin with."""

    @pytest.fixture
    def on(self) -> TrainedDevice:
        raise NotImplementedError

    @pytest.fixture
    def device(self, on: TrainedDevice) -> torch.device:
        return torch.device(on.names[0])

    @pytest.fixture(autouse=True)
    def prepared(self, on: TrainedDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        on.prepare(monkeypatch)
        with reproducible(1):
            yield

    @pytest.fixture
    def compiling(self, on: TrainedDevice, prepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Updates are compiled, on a CPU as well."""
        on.compile(monkeypatch)

    @pytest.fixture
    def uncompiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Updates are not compiled: what is tested is something else, and each form takes seconds."""
        monkeypatch.setattr(recorded, "compiled_for", lambda _: None)


class CurvesContract(DeviceContract):
    """The suite."""

    # A fused trial is the trial

    @pytest.mark.usefixtures("uncompiled")
    @pytest.mark.parametrize(
        ("dtype", "most", "replayed"),
        [(torch.float32, 1e-5, True), (torch.float64, 1e-12, True), (torch.float32, 1e-5, False)],
    )
    def test_a_step_has_the_plain_trainers_gradient(
        self, on: TrainedDevice, device: torch.device, dtype: torch.dtype, most: float, replayed: bool
    ) -> None:
        """Every loss and optimizer, with batch normalisation, dropout, augmentation, from the same state."""
        starts = [
            tiny(number, *pair, regulariser=Choice("none"), **_exact_pixels(number))
            for number, pair in enumerate(PAIRS)
        ]
        pool = fused_pool(starts, dtype, device=device, recorder=on.recorder() if replayed else refusing)
        found, trainings = _one_step(pool, [plain_training(start, dtype) for start in starts])
        assert (pool.why_unrecorded is None) == replayed
        errors = [relative(found[slot], gradient_of(each, pool)) for slot, each in enumerate(trainings)]
        assert max(errors) <= most

    @pytest.mark.usefixtures("uncompiled")
    def test_an_epoch_in_double_precision_gives_the_plain_trainers_numbers(
        self, on: TrainedDevice, device: torch.device
    ) -> None:
        """Weights, running statistics, sums and scores, under all regularisers, with last partial batches."""
        starts = [tiny(number, *pair, **_exact_pixels(number)) for number, pair in CURVED]
        pool = fused_pool(starts, torch.float64, device=device, recorder=on.recorder())
        train_epoch(pool)
        assert pool.why_unrecorded is None
        scores = {each.member.slot: each for each in pool.score(list(pool.members.values()))}
        assert pool.why_scores_unrecorded is None
        errors = {}
        for slot, start in enumerate(starts):
            training = plain_training(start, torch.float64)
            trained, expected, state = training.train_epoch(), training.validate(), pool.program.state
            scored, sums = scores[slot], pool.members[slot].sums
            assert isinstance(scored, Scored)
            assert scored.scores is not None
            errors[start.trial_id] = max(
                relative(state.weights_TP[slot], row_of(training, pool)),
                abs(sums.loss / sums.images - trained.loss),
                abs(sums.norm / sums.steps - trained.gradient_norm) / trained.gradient_norm,
                abs(scored.scores.loss - expected.loss),
                *(
                    float((mine[slot].cpu() - theirs).abs().max())
                    for mine, theirs in zip(state.buffers.values(), training.model.buffers(), strict=True)
                ),
            )
        assert max(errors.values()) <= 1e-6

    @pytest.mark.usefixtures("compiling")
    def test_an_epoch_in_single_precision_is_off_by_no_more_than_rounding(self, on: TrainedDevice) -> None:
        """Every loss and optimizer through four slots, held against two memory layouts on the CPU."""
        every = 3 if on.exact else 1  # on a GPU all of their pairs
        starts = [tiny(n, *PAIRS[n], strength=1e-4, epochs=1) for n in range(0, len(PAIRS), every)]
        engine = FusedEngine(TASK, on.names[0], slots=4, rows=16, images_per_row=16)
        found = reports(engine, starts)
        assert _why_unrecorded(engine) == [None]
        by_layout, by_device = [], []
        for start in starts:
            plain = _after_an_epoch(plain_training(start))
            by_layout.append((plain - _after_an_epoch(contiguous(plain_training(start)))).abs())
            (report,) = found[start.trial_id]
            assert report.validation_loss is not None
            by_device.append(
                (plain - torch.tensor([report.validation_loss, report.metrics["accuracy"]])).abs()
            )
        layout, other = torch.stack(by_layout), torch.stack(by_device)
        # Rounding is chance, and of 64 pairs a few amplify it: so the two samples are compared as samples.
        for share in (0.5, 0.9):
            assert (other.quantile(share, dim=0) <= 5 * layout.quantile(share, dim=0) + 1e-5).all()
        assert (other.amax(dim=0) <= 5 * layout.amax(dim=0) + 1e-2).all()

    # Steps are recorded

    @pytest.mark.usefixtures("compiling")
    def test_nothing_is_recorded_or_compiled_once_all_kinds_have_been_there(
        self, on: TrainedDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trials of all kinds go through four slots twice; the next 108 admissions find everything there."""
        counting = Counting(on.recorder())
        monkeypatch.setattr(pool_module, "recorder_for", lambda _: counting)
        engine = FusedEngine(SMALL, on.names[0], slots=4, rows=8, images_per_row=16)
        compiled: list[tuple[int, int]] = []
        for turn in range(4):
            run(engine, [_brief(turn, number) for number in range(54)])
            compiled.append((counting.made, on.kernels()))
        assert _why_unrecorded(engine) == [None]
        assert engine.programs_built == 1
        assert on.compiled().why_not is None
        assert compiled[1] == compiled[2] == compiled[3]
        assert counting.made > 7  # kinds of updates alone
        assert on.kernels() > 0

    @pytest.mark.usefixtures("uncompiled")
    def test_replayed_steps_are_those_done_one_by_one(self, on: TrainedDevice, device: torch.device) -> None:
        starts = [tiny(9 * number, *PAIRS[9 * number], **_exact_pixels(number)) for number in range(8)]
        pools = []
        for recorder in (on.recorder(), refusing):
            pools.append(fused_pool(starts, torch.float64, device=device, recorder=recorder, slots=10))
            train_epoch(pools[-1])
        replayed, one_by_one = (pool.program.state for pool in pools)
        assert [pool.why_unrecorded for pool in pools] == [None, "not here"]
        for slot in range(len(starts)):
            assert relative(replayed.weights_TP[slot], one_by_one.weights_TP[slot]) <= 1e-9
        for mine, theirs in zip(replayed.buffers.values(), one_by_one.buffers.values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)

    # The plain trainer

    def test_the_plain_trainer_by_graphs_is_the_plain_trainer(self, on: TrainedDevice) -> None:
        by_graphs, as_it_is = PlainEngine(TASK, on.names[0]), PlainEngine(TASK, on.names[0], eager=True)
        expected, again = reports(as_it_is, KINDS), reports(as_it_is, KINDS)
        found = reports(by_graphs, KINDS)
        assert_all_near(found, expected)
        assert_all_near(expected, reports(PlainEngine(TASK, "cpu", eager=True), KINDS))
        if on.exact:
            assert found == expected == again

    def test_a_users_own_model_is_fused_and_recorded(self, on: TrainedDevice, users_own: ModuleType) -> None:
        own = Task(data=TASK.data, allow_imports=("users_own",))
        model = Choice("users_own:Scores")
        starts = [tiny(n, *pair, model=model, epochs=2) for n, pair in CURVED[1:40:8]]
        engine = FusedEngine(own, on.names[0], slots=4, rows=8, images_per_row=16)
        engine.admit(starts[0])
        advance_to_end_of(engine, starts[0].trial_id)
        assert engine.why_alone(starts[0].trial_id) is None
        assert _why_unrecorded(engine) == [None]
        engine.retire(starts[0].trial_id)
        assert_all_near(reports(engine, starts), reports(PlainEngine(own, "cpu"), starts))

    @pytest.fixture
    def users_own(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
        monkeypatch.setenv(ALLOW_VARIABLE, "users_own")
        module = ModuleType("users_own")
        module.Scores = Scores  # type: ignore[attr-defined]
        sys.modules["users_own"] = module
        yield module
        del sys.modules["users_own"]

    # Precision

    @pytest.mark.usefixtures("compiling")
    @pytest.mark.parametrize("precision", ["bf16", "tf32"])
    def test_lower_precisions_train_and_keep_weights_in_single(
        self, on: TrainedDevice, precision: Precision
    ) -> None:
        task = dataclasses.replace(TASK, precision=precision)
        engine = FusedEngine(task, on.names[0], slots=4, rows=8, images_per_row=16)
        found = reports(engine, KINDS[:2])
        assert _why_unrecorded(engine) == [None, None]
        full = reports(FusedEngine(TASK, on.names[0], slots=4, rows=8, images_per_row=16), KINDS[:2])
        alone, alone_full = (reports(PlainEngine(each, on.names[0]), KINDS[:2]) for each in (task, TASK))
        lower = precision in on.precisions
        for trial_id in found:
            for mine, expected in ((found, full), (alone, alone_full)):
                losses = _losses(mine[trial_id])
                assert losses[-1] < losses[0]
                assert losses == pytest.approx(_losses(expected[trial_id]), rel=0.02)
                assert (losses != _losses(expected[trial_id])) == lower, "it is computed in that, or not"
        for lane in engine._pools.values():
            kept = [each for each in lane.pool.program.state.tensors() if each.is_floating_point()]
            assert {each.dtype for each in kept} == {torch.float32}

    def test_what_the_process_has_set_changes_no_number(self, on: TrainedDevice) -> None:
        """Numbers are float32 whatever others have made of it: TF32, float64, kernels chosen by trying."""
        expected = reports(FusedEngine(TASK, on.names[0], slots=4, images_per_row=16), KINDS[:2])
        kernels = torch.backends.cudnn.benchmark
        try:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
            torch.set_default_dtype(torch.float64)
            found = reports(FusedEngine(TASK, on.names[0], slots=4, images_per_row=16), KINDS[:2])
            assert torch.backends.cudnn.benchmark
            assert torch.get_float32_matmul_precision() == "high"
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.benchmark = kernels
            torch.set_default_dtype(torch.float32)
        assert_all_near(found, expected, 1e-5)
        if on.exact:
            assert found == expected


def _exact_pixels(number: int) -> dict[str, object]:
    return {"augment": SAME_PIXELS} if number % 3 == 0 else {}


def _brief(turn: int, number: int) -> TrialStart:
    """A trial of an epoch of three steps or fewer: those of a turn have seeds of their own."""
    start = tiny(number, *PAIRS[number], epochs=1, batch_size=(16, 20)[number % 2])
    return dataclasses.replace(start, trial_id=1000 * turn + number, seed=1000 * turn + number)


def _one_step(pool: Pool, trainings: list[Training]) -> tuple[dict[int, Tensor], list[Training]]:
    """Slot → gradient of one step from where its plain trial stands, which takes the same step."""
    state, found = pool.program.state, {}
    for slot, training in enumerate(trainings):
        taken = training.steps(1)
        for _, _ in zip(range(3), taken, strict=False):
            """A state with momentum, running statistics and all."""
        taken.close()
        state.admit(slot, state.new_row(training.model))
        pool.members[slot].epoch = 1
        next(training.steps(2))
    before_TP = state.weights_TP.clone()
    while pool.members:
        pool.step()
        for slot in [
            slot for slot in pool.members if not torch.equal(state.weights_TP[slot], before_TP[slot])
        ]:
            found[slot] = state.gradient_TP[slot].clone()
            pool.retire(pool.members[slot])
    return found, trainings


def _after_an_epoch(training: Training) -> Tensor:
    training.train_epoch()
    scores = training.validate()
    return torch.tensor([scores.loss, scores.metrics["accuracy"]])


def _losses(said: Sequence[EpochReport]) -> list[float]:
    return [report.train_loss for report in said if report.train_loss is not None]


def _why_unrecorded(engine: FusedEngine) -> list[str | None]:
    """Of each program, steps and scores."""
    pools = [lane.pool for lane in engine._pools.values()]
    return [pool.why_unrecorded or pool.why_scores_unrecorded for pool in pools]
