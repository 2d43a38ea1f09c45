"""What the Triton kernels compute, in Triton's interpreter: run by `test_triton_convolutions.py`.

The interpreter has to be chosen before Triton is imported, and then holds for the whole process: so these
tests are no part of the others' process, and are found by whoever names this file alone. The interpreter
computes each block of a kernel with NumPy, in float32 also where a GPU multiplies in TF32 or bfloat16.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from math import inf, nan

import pytest
import torch
from torch import Tensor, nn

from objectives.chance import words_of
from objectives.devices import reproducible
from objectives.fused import backends, program, recorded, tails, triton_convolutions
from objectives.fused.backends import fastest, setting_of
from objectives.fused.convolutions import CONVOLUTIONS, Shape
from objectives.fused.memory import Sizes
from objectives.fused.triton_chance import gives_the_same, words_by_triton
from objectives.fused.triton_convolutions import Geometry, map_out
from tests.contracts.parity_contract import CPU, PAIRS, fused_pool, relative, small_cnn, tiny
from tests.contracts.recorders import Strict
from tests.objectives.fused.test_convolutions import MODULES, ON_CPU, Drawn, name_of, shape_of
from tests.objectives.fused.test_parity import lockstep

SERVED = [
    module for module in MODULES if module.dilation == (1, 1) and not isinstance(module.padding, str)
] + [
    nn.Conv2d(3, 32, 3),  # of the built-in CNN
    nn.Conv2d(16, 32, 3, 2, padding=1, bias=False),  # of the built-in residual network
    nn.Conv2d(66, 65, 1),  # two blocks of channels in and out, the second of each partial
    nn.Conv2d(2, 2, 2, stride=3),  # some of the map lies under no kernel
]
SIDES = (7, 6)

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 6e-3}
"""In bfloat16 results are rounded to 8 bits, by the interpreter towards zero: that alone is 3e-3 to 4e-3."""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    assert os.environ["TRITON_INTERPRET"] == "1", "run by test_triton_convolutions.py"
    torch.manual_seed(1)
    with reproducible(1):
        yield


def exactly(drawn: Drawn) -> list[Tensor]:
    """What torch gives for the same numbers in float64."""
    exact = Drawn(drawn.module, drawn.x_MHWRC.shape[1:3], drawn.rows, len(drawn.x_MHWRC), torch.float64)
    for name in ("x_MHWRC", "kernel_ROHWC", "bias_RO", "dy_MHWRO"):
        given = getattr(drawn, name)
        setattr(exact, name, None if given is None else given.double())
    return exact.plain()


@pytest.mark.parametrize(
    ("module", "dtype"),
    [(module, torch.float32) for module in SERVED] + [(module, torch.bfloat16) for module in SERVED[:9:2]],
    ids=lambda given: name_of(given) if isinstance(given, nn.Conv2d) else str(given),
)
def test_numbers_and_gradients_are_torchs_own(module: nn.Conv2d, dtype: torch.dtype) -> None:
    setting = dataclasses.replace(ON_CPU, dtype=dtype)
    assert CONVOLUTIONS["triton"].offered(shape_of(module, SIDES), setting)
    drawn = Drawn(module, SIDES, 2, 5, dtype)
    for mine, wanted in zip(drawn.run("triton", contiguous=False), exactly(drawn), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == wanted.shape
        assert relative(mine.double(), wanted) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernels_gradient_over_many_places_is_added_up_in_parts(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_convolutions, "PART", 64)
    drawn = Drawn(nn.Conv2d(3, 5, 3), (9, 9), 2, 5, dtype)  # 245 places: four parts, the last partial
    for mine, wanted in zip(drawn.run("triton"), exactly(drawn), strict=True):
        assert mine.dtype == dtype
        assert relative(mine.double(), wanted) <= BOUNDS[dtype]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the rows that are sick
@pytest.mark.parametrize(("module", "part"), [(MODULES[2], 8192), (MODULES[0], 64)], ids=str)
def test_a_rows_numbers_depend_on_nothing_beside_it(
    module: nn.Conv2d, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the number of other rows, on its place, nor on what is in them: NaN and infinity stay theirs."""
    monkeypatch.setattr(triton_convolutions, "PART", part)
    drawn = Drawn(module, SIDES, 9, 6, torch.float32)
    sick = drawn.of(list(range(9)))
    for tensor in (sick.x_MHWRC, sick.dy_MHWRO):
        tensor[:, :, :, 2], tensor[:, :, :, 3] = torch.nan, torch.inf
    for tensor in (sick.kernel_ROHWC, sick.bias_RO):
        assert tensor is not None
        tensor[2], tensor[3] = torch.inf, torch.nan
    found = []
    for source, rows in (
        (drawn, [0]),
        (drawn, [2, 0, 3]),
        (sick, [2, 0, 3]),
        (sick, [4, 3, 5, 6, 7, 8, 2, 0]),
    ):
        place = rows.index(0)
        found.append([tensor[place].clone() for tensor in source.of(rows).run("triton")])
    assert all(tensor.isfinite().all() for tensor in found[0])
    for these, those in itertools.pairwise(found):
        assert all(torch.equal(one, other) for one, other in zip(these, those, strict=True))


def test_what_begins_in_the_middle_of_a_line_is_moved() -> None:
    """For such a tensor another kernel would be compiled; and it is the same numbers."""
    drawn = Drawn(MODULES[0], SIDES, 2, 3, torch.float32)
    kernel = drawn.kernel_ROHWC
    moved = torch.empty(kernel.numel() + 1)[1:].view(kernel.shape).copy_(kernel)
    assert moved.data_ptr() % 16
    geometry = Geometry(2, 4, *SIDES, 3, 3, 1, 1, 0, 0)
    x_MHWX = drawn.x_MHWRC.flatten(3)
    expected = map_out(x_MHWX, kernel, None, geometry, "ieee")
    assert torch.equal(map_out(x_MHWX, triton_convolutions._plain(moved), None, geometry, "ieee"), expected)
    assert triton_convolutions._plain(moved).data_ptr() % 16 == 0
    assert triton_convolutions._plain(kernel) is kernel


@pytest.mark.parametrize(
    ("name", "norm"), [("triton", True), ("triton_block", False), ("grouped_tail", False)]
)
def test_one_step_of_a_pool_has_the_plain_trainers_gradient(
    name: str, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def always(shape: Shape, *_: object) -> str:
        assert CONVOLUTIONS[name].offered(shape, ON_CPU)
        asked.append(shape)
        return name

    monkeypatch.setattr(program, "usual", always)
    model = small_cnn(dropout=0.3, batch_norm=norm)
    starts = [tiny(number, *PAIRS[11 * number], model=model) for number in range(2)]
    assert lockstep(starts, torch.float32, monkeypatch) <= 1e-5
    assert [shape.tail for shape in asked] == ([0, 0] if norm else [2, 1])


def test_it_passes_the_trial_of_backends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Measured beside the others, with sound numbers; in the interpreter it is far too slow to be taken."""
    seen = []
    triton = CONVOLUTIONS["triton"]

    def counted(x: Tensor, kernel: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
        seen.append(x.dtype)
        return triton.run(x, kernel, bias, module)

    there = {**CONVOLUTIONS, "triton": dataclasses.replace(triton, run=counted)}
    monkeypatch.setattr(backends, "CONVOLUTIONS", there)
    monkeypatch.setattr(backends, "_found", {})
    monkeypatch.setattr(backends, "ROUNDS", 1)
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        setting = setting_of(CPU, Sizes(slots=2, rows=2, images_per_row=4), dtype, precision)
        assert fastest(shape_of(MODULES[0], SIDES), setting, CPU, time.thread_time) in there
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_random_words_are_those_that_operations_give() -> None:
    assert gives_the_same(words_by_triton, CPU)


def test_a_recorded_step_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of trials that augment and drop, with words by the kernel, leaves the same bits."""
    found = []
    for by in (words_of, words_by_triton):
        monkeypatch.setattr(recorded, "words_for", lambda _, by=by: by)
        starts = [tiny(3 * number, *PAIRS[number], epochs=1) for number in range(3)]
        pool = fused_pool(starts, recorder=Strict(watched=0))  # the interpreter has operations of its own
        for _ in range(3):
            pool.step()
        assert pool.why_unrecorded is None
        found.append(pool.program.state.weights_TP.clone())
    assert torch.equal(*found)


TAILS = [
    (
        nn.Conv2d(3, 32, 3),
        SIDES,
        2,
    ),  # of the built-in CNN: a map of 5×4, the last line of which is in no pool
    (nn.Conv2d(2, 5, 3, padding=1), (6, 5), 2),
    (nn.Conv2d(2, 4, (2, 3), stride=2, padding=1, bias=False), (9, 10), 2),
    (nn.Conv2d(3, 17, 3), SIDES, 1),
]


BLOCKS = ("triton_block", "grouped_tail")


def with_tail(drawn: Drawn, tail: int, *, together: bool, backend: str = "triton_block") -> list[Tensor]:
    """What a convolution's tail gives, and the gradients, by Triton's kernels."""
    x = drawn.x_MHWRC.flatten(3).permute(0, 3, 1, 2).requires_grad_()
    given = [x, drawn.kernel_ROHWC.clone().requires_grad_()]
    bias = None if drawn.bias_RO is None else drawn.bias_RO.clone().requires_grad_()
    way = CONVOLUTIONS[backend]
    if together:
        assert way.block is not None
        y = way.block(*given, bias, drawn.module, tail)
    else:
        y = tails.by_operations(way.run(*given, bias, drawn.module), tail)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    leaves = given if bias is None else [*given, bias]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def close(mine: Tensor, wanted: Tensor) -> bool:
    """Up to the order in which numbers are added."""
    return relative(mine.double(), wanted.double()) <= BOUNDS[mine.dtype]


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("module", "sides", "tail"), TAILS, ids=str)
def test_a_tail_computed_with_its_convolution_is_the_same(
    module: nn.Conv2d, sides: tuple[int, int], tail: int, dtype: torch.dtype, backend: str
) -> None:
    drawn = Drawn(module, sides, 2, 5, dtype)
    together, apart = (with_tail(drawn, tail, together=which, backend=backend) for which in (True, False))
    assert close(together[0], apart[0]) if backend == "grouped_tail" else torch.equal(together[0], apart[0])
    for mine, wanted in zip(together[1:], apart[1:], strict=True):
        assert mine.dtype == dtype
        assert mine.shape == wanted.shape
        # The interpreter rounds otherwise than torch, so that of two alike another may be the largest.
        loose = backend == "grouped_tail" and dtype == torch.bfloat16
        assert relative(mine.double(), wanted.double()) <= (0.1 if loose else BOUNDS[dtype])


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize("tail", [1, 2])
def test_of_equal_numbers_the_first_is_taken_and_flat_ones_give_no_gradient(tail: int, backend: str) -> None:
    """Whole numbers from -1 to 1: most squares have several that are largest, and some have none above 0."""
    drawn = Drawn(nn.Conv2d(1, 3, 1), (8, 8), 2, 4, torch.float32)
    chance = torch.Generator().manual_seed(5)
    drawn.x_MHWRC = torch.randint(-1, 2, drawn.x_MHWRC.shape, generator=chance).float()
    drawn.kernel_ROHWC = torch.ones_like(drawn.kernel_ROHWC)
    drawn.bias_RO = torch.zeros(2, 3)
    together, apart = (with_tail(drawn, tail, together=which, backend=backend) for which in (True, False))
    assert (apart[0] == 0).any()
    for mine, wanted in zip(together[:-1], apart[:-1], strict=True):
        assert torch.equal(mine, wanted)
    assert close(together[-1], apart[-1])  # of the bias, added up in another order


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the row that is sick
@pytest.mark.parametrize("backend", BLOCKS)
def test_a_sick_rows_tail_stays_its_own(backend: str) -> None:
    """NaN and infinity go where operations have them go, and nowhere else."""
    drawn = Drawn(nn.Conv2d(1, 2, 1), (4, 4), 3, 3, torch.float32)
    sick = drawn.of([0, 1, 2])
    sick.x_MHWRC[:, 0, 1, 1], sick.x_MHWRC[:, 2, 2, 1], sick.x_MHWRC[:, 3, :, 1] = nan, inf, -inf
    found = [with_tail(sick, 2, together=which, backend=backend) for which in (True, False)]
    for mine, wanted in zip(*found, strict=True):
        assert torch.equal(mine.isnan(), wanted.isnan())
        assert close(mine.nan_to_num(), wanted.nan_to_num())
    well = with_tail(drawn, 2, together=True, backend=backend)
    for mine, sound in zip(found[0][2:], well[2:], strict=True):
        assert mine[[0, 2]].isfinite().all()
        assert torch.equal(mine[[0, 2]], sound[[0, 2]])


def test_without_gradients_nothing_is_kept_of_the_choice() -> None:
    drawn = Drawn(nn.Conv2d(2, 3, 3), SIDES, 2, 3, torch.float32)
    way = CONVOLUTIONS["triton_block"].block
    assert way is not None
    x = drawn.x_MHWRC.flatten(3).permute(0, 3, 1, 2)
    learnt = way(x, drawn.kernel_ROHWC, drawn.bias_RO, drawn.module, 2)
    with torch.no_grad():
        assert torch.equal(way(x, drawn.kernel_ROHWC, drawn.bias_RO, drawn.module, 2), learnt)
