"""A precision changes rounding and nothing else, in both trainers alike."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from objectives.base import Choice, Engine, EpochEnd, EpochReport, ObjectiveError, Precision, Task, TrialStart
from objectives.chance import Epoch
from objectives.devices import reproducible
from objectives.fused import FusedEngine
from objectives.models import Dropout, EpochMasks
from objectives.precision import activations, computing, resolve_precision
from objectives.trainer import PlainEngine, score_on_test
from objectives.training import Training
from tests.contracts.parity_contract import CPU, TASK, data_of, small_cnn, tiny

BF16 = replace(TASK, precision="bf16")
LOSS_TOLERANCE = 0.02
"""Relative. bfloat16 keeps 8 bits: a product is off by up to 0.4 %, and other orders of sums by as much."""

STARTS = [
    tiny(0, "cross_entropy", "adam"),
    tiny(1, "focal", "momentum", model=small_cnn(dropout=0.25)),
    tiny(2, "binary_cross_entropy", "sgd", model=small_cnn(batch_norm=True)),
    tiny(3, "mse", "adamw", model=Choice("resnet", {"width": 4, "norm": "group"})),
    tiny(4, "mae", "adagrad", model=Choice("resnet", {"width": 4})),
]


def curves(engine: Engine, starts: list[TrialStart]) -> dict[int, list[EpochReport]]:
    """Every trial's reports, trained side by side where there are slots."""
    found: dict[int, list[EpochReport]] = {start.trial_id: [] for start in starts}
    waiting, left = list(starts), len(starts)
    while left:
        while waiting and engine.free_slots:
            engine.admit(waiting.pop(0))
        for event in engine.advance():
            assert isinstance(event, EpochEnd), event
            found[event.trial_id].append(event.report)
            if event.last:
                engine.retire(event.trial_id)
                left -= 1
    return found


def losses(reports: list[EpochReport]) -> list[float]:
    return [report.train_loss or math.nan for report in reports]


def fused(task: Task, slots: int = 8) -> FusedEngine:
    return FusedEngine(task, "cpu", slots=slots, rows=8, images_per_row=16)


def test_fused_and_plain_agree_in_bfloat16() -> None:
    together, alone = curves(fused(BF16), STARTS), curves(PlainEngine(BF16, "cpu"), STARTS)
    full = curves(PlainEngine(TASK, "cpu"), STARTS)
    for start in STARTS:
        got, expected = losses(together[start.trial_id]), losses(alone[start.trial_id])
        assert got == pytest.approx(expected, rel=LOSS_TOLERANCE)
        assert expected == pytest.approx(losses(full[start.trial_id]), rel=LOSS_TOLERANCE)
        assert expected != losses(full[start.trial_id]), "it was not computed in bfloat16"
        assert got != losses(full[start.trial_id]), "it was not computed in bfloat16"


def test_neighbours_show_nowhere_in_bfloat16_whatever_becomes_of_them() -> None:
    watched = STARTS[0]
    lost = tiny(7, "cross_entropy", "sgd", learning_rate=1e30)
    mixed = curves(fused(BF16), [lost, *STARTS[1:3], watched])
    assert mixed[7][-1].diverged
    alone = curves(fused(BF16, slots=1), [watched])
    assert [replace(r, seconds=0, images_per_second=0) for r in mixed[0]] == [
        replace(r, seconds=0, images_per_second=0) for r in alone[0]
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_is_float32(precision: Precision) -> None:
    training = Training(STARTS[0].config, 1, data_of(0, torch.float32), precision=precision)
    with reproducible(1, precision):
        training.train_epoch()
    state = training.state()
    numbers = [
        *state["model"].values(),
        *(v for kept in state["optimizer"]["state"].values() for v in kept.values()),
    ]
    assert {value.dtype for value in numbers if value.is_floating_point()} == {torch.float32}
    assert {p.grad.dtype for p in training.model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("writes", [fused, lambda task: PlainEngine(task, "cpu")])
@pytest.mark.parametrize("reads", [fused, lambda task: PlainEngine(task, "cpu")])
def test_a_checkpoint_goes_on_in_bfloat16(writes: object, reads: object, tmp_path: Path) -> None:
    start, path = STARTS[0], tmp_path / "checkpoint"
    whole = losses(curves(PlainEngine(BF16, "cpu"), [start])[0])
    engine: Engine = writes(BF16)  # type: ignore[operator]  # one of the makers above
    engine.admit(start)
    engine.advance()
    engine.save(0, path)
    rest = curves(reads(BF16), [replace(start, checkpoint=path)])  # type: ignore[operator]
    assert losses(rest[0]) == pytest.approx(whole[1:], rel=LOSS_TOLERANCE)
    if writes is reads and writes is not fused:
        assert losses(rest[0]) == whole[1:]


def test_weights_are_not_remembered_from_an_earlier_step() -> None:
    """An outer autocast keeps the casts of an inner one's weights, unless that has none."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.autocast("cpu", enabled=False):
        for value in (1.0, 2.0):
            with torch.no_grad():
                layer.weight.fill_(value)
            with computing("bf16", CPU):
                assert layer(torch.ones(1, 2)).item() == 2 * value


def test_dropout_draws_the_same_in_every_precision() -> None:
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        dropout = Dropout(0.3).train()
        masks = EpochMasks(Epoch(1, 1, 64, CPU))
        masks.begin(0, 64)
        dropout.masks = masks.next
        drawn.append(dropout(torch.ones(64, 8, dtype=dtype)))
    assert drawn[1].dtype == torch.bfloat16
    assert torch.equal(drawn[0].bfloat16(), drawn[1])


def test_winners_are_scored_in_the_precision_they_were_searched_in() -> None:
    start = STARTS[0]
    scored = {
        task: score_on_test(task, start.config, start.seed, start.split_seed, "cpu") for task in (TASK, BF16)
    }
    for task, score in scored.items():
        assert score.validation == curves(PlainEngine(task, "cpu"), [start])[0][-1].metrics
    assert scored[TASK].validation != scored[BF16].validation


def test_names() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("tf32", torch.device("cuda")) == "tf32"
    for name in ("tf32", "fp16"):
        with pytest.raises(ObjectiveError, match=name):
            resolve_precision(name, CPU)
    assert activations("bf16") == torch.bfloat16
    assert activations("tf32", torch.float64) == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_in_tf32_only_where_that_was_asked_for(precision: Precision) -> None:
    asked = precision == "tf32"
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    with reproducible(1, precision):
        assert (matmul.fp32_precision == "tf32") == asked
        assert torch.backends.cudnn.allow_tf32 == asked
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]  # not in stubs
    assert matmul.fp32_precision == before
