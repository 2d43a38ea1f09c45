"""The fastest backend is taken if it is clearly faster and gives the right numbers; else the usual one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from objectives.devices import reproducible
from objectives.fused import backends, convolutions
from objectives.fused.backends import fastest, setting_of
from objectives.fused.convolutions import Backend, Run, Shape, shapes_of
from objectives.fused.memory import Sizes
from objectives.recording import Recording, RecordingError, Work
from tests.contracts.parity_contract import CPU
from tests.contracts.recorders import Strict

SETTING = setting_of(CPU, Sizes(slots=2, rows=2, images_per_row=4), torch.float32, "fp32")
TRUE = convolutions.CONVOLUTIONS["grouped"].run


class Clock:
    """Stands still, but for what the backends of a test say that they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.setattr(backends, "_found", {})
    monkeypatch.setattr(backends, "SECONDS", 0.0)
    with reproducible(1):
        yield Clock()


@pytest.fixture
def shape() -> Shape:
    (found,) = shapes_of(nn.Sequential(nn.Conv2d(2, 3, 3)), (2, 8, 8)).values()
    return replace(found, inner=True)


def taking(clock: Clock, *seconds: float, run: Run = TRUE) -> Backend:
    """A backend that takes so many seconds, one of them after the other in turn."""
    line = itertools.cycle(seconds)

    def timed(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
        clock.now += next(line)
        return run(x, kernel, bias, module)

    return Backend(timed, lambda _, __: True)


def found(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape, **others: Backend
) -> tuple[str, dict[str, Backend]]:
    """What is taken where `grouped`, the usual one here, takes a second."""
    there = {"grouped": taking(clock, 1.0), **others}
    monkeypatch.setattr(backends, "CONVOLUTIONS", there)
    return fastest(shape, SETTING, CPU, clock), there


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.5, 0.4, "second"), (0.4, 0.5, "first"), (0.96, 0.97, "grouped"), (0.94, 1.5, "first")],
)
def test_the_fastest_is_taken_if_it_is_clearly_faster(
    first: float, second: float, expected: str, monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape
) -> None:
    assert backends.LEAST_GAIN == 1.05
    others = {"first": taking(clock, first), "second": taking(clock, second)}
    assert found(monkeypatch, clock, shape, **others)[0] == expected


def test_a_few_disturbed_turns_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape
) -> None:
    # Two runs come before the turns; three turns of seven seem ten times as fast.
    noisy = taking(clock, *(1.0, 1.0), *(0.1, 1.0) * 3, 1.0)
    assert found(monkeypatch, clock, shape, noisy=noisy)[0] == "grouped"


def raising(*_: object) -> Tensor:
    raise RuntimeError("cuDNN error: no engine")


def not_a_number(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    return TRUE(x, kernel, bias, module) * torch.nan


def without_bias(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    """The map is right, and so are all gradients but the bias's: it has none."""
    assert bias is not None
    return TRUE(x, kernel, bias.detach(), module) + 0 * bias.sum()


def slightly_off(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    return TRUE(x, kernel, bias, module) * 1.001


def short(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    return TRUE(x, kernel, bias, module)[:, :, :-1]


def full(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("tried to allocate\nmany bytes")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (raising, "no engine"),
        (not_a_number, "off by nan"),
        (without_bias, "off by 1.0e+00"),
        (slightly_off, "off by 1.0e-03"),
        (short, "Mismatch in shape"),
        (full, "too little memory"),
    ],
)
def test_a_backend_that_fails_its_trial_is_not_taken(
    run: Run,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    shape: Shape,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, sound = taking(clock, 0.01, run=run), taking(clock, 0.5)
    assert found(monkeypatch, clock, shape, broken=broken, sound=sound)[0] == "sound"
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "by broken here" in line
    assert said in line


def test_what_the_usual_backend_raises_is_raised(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape
) -> None:
    there = {"grouped": taking(clock, 1.0, run=raising), "other": taking(clock, 0.1)}
    monkeypatch.setattr(backends, "CONVOLUTIONS", there)
    with pytest.raises(RuntimeError, match="no engine"):
        fastest(shape, SETTING, CPU, clock)


def test_a_hopeless_backend_gets_no_turns(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape
) -> None:
    runs = []

    def counted(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
        runs.append(1)
        return TRUE(x, kernel, bias, module)

    assert found(monkeypatch, clock, shape, slow=taking(clock, 2.1, run=counted))[0] == "grouped"
    assert len(runs) == 2  # one to be checked, one to be timed
    runs.clear()
    monkeypatch.setattr(backends, "_found", {})
    assert found(monkeypatch, clock, shape, slow=taking(clock, 1.9, run=counted))[0] == "grouped"
    assert len(runs) == 2 + backends.ROUNDS


class Picky(Strict):
    """A recorder of a device, which can't record some."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self._refused = refused

    def __call__(self, work: Work) -> Recording:
        if self.recordings in self._refused:
            self.recordings += 1
            raise RecordingError("operation not permitted")
        return super().__call__(work)


def test_where_steps_are_recorded_backends_are(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be is not taken, however fast it is: no step could be recorded any more."""
    recorder = Picky(1)
    monkeypatch.setattr(backends, "recorder_for", lambda _: recorder)
    others = {"refused": taking(clock, 0.1), "sound": taking(clock, 0.5)}
    assert found(monkeypatch, clock, shape, **others)[0] == "sound"
    assert recorder.recordings == 3
    assert recorder.replays == 1 + 2 * (1 + backends.ROUNDS)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line == "convolutions are not computed by refused here: operation not permitted"


def test_where_nothing_can_be_recorded_backends_are_measured_as_they_are(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Picky(0)
    monkeypatch.setattr(backends, "recorder_for", lambda _: recorder)
    assert found(monkeypatch, clock, shape, fast=taking(clock, 0.5))[0] == "fast"
    assert (recorder.recordings, recorder.replays) == (1, 0)
    assert "operation not permitted" in caplog.text


def test_it_is_measured_once_for_all_that_decides(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, shape: Shape
) -> None:
    assert found(monkeypatch, clock, shape, fast=taking(clock, 0.5))[0] == "fast"
    monkeypatch.setattr(backends, "CONVOLUTIONS", {"grouped": Backend(raising, lambda _, __: True)})
    assert fastest(shape, SETTING, CPU, clock) == "fast"
    for other in (
        replace(SETTING, rows=3),
        replace(SETTING, images=5),
        replace(SETTING, device="another"),
        replace(SETTING, dtype=torch.float64),
        replace(SETTING, precision="tf32"),
    ):
        assert fastest(shape, other, CPU, clock) == "grouped"
    assert fastest(replace(shape, height=9), SETTING, CPU, clock) == "grouped"
    assert fastest(replace(shape, inner=False), SETTING, CPU, clock) == "grouped"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_that_is_offered_here_is_sound(
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    shape: Shape,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backends, "ROUNDS", 1)
    setting = replace(SETTING, dtype=dtype)
    for asked in (shape, replace(shape, inner=False), replace(shape, bias=False, padding=(1, 1))):
        assert fastest(asked, setting, CPU, clock) in convolutions.CONVOLUTIONS
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_measuring_leaves_the_processes_random_numbers_alone(clock: Clock, shape: Shape) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fastest(shape, SETTING, CPU, clock)
    assert torch.equal(torch.rand(4), expected)
