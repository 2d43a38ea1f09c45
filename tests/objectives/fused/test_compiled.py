"""Compiled updates are the updates; they are made before anything is recorded, once, and never on a CPU."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.utils import counters

from objectives.base import Choice, Precision, TrialStart
from objectives.devices import reproducible
from objectives.fused import compiled, recorded
from objectives.fused.compiled import CompiledUpdates, compiled_for
from objectives.fused.inbox import bucket
from objectives.fused.member import Member
from objectives.fused.pool import Pool
from objectives.fused.update import UPDATES, Rows, Update, optimizer_options
from objectives.recording import Recording, Work
from tests.contracts.parity_contract import empty_pool, fused_pool, new_member, tiny, train_epoch
from tests.contracts.recorders import Strict

DECAYED = 12
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-12}
SHAPE = (5, 20)
FIELDS = ("weights", "first", "second")

INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not shutil.which("g++"), reason="on a CPU Inductor needs a C++ compiler"),
        pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    ],
)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Nothing compiled is left from one test to the next."""
    torch._dynamo.reset()
    counters.clear()
    with reproducible(1):
        yield


class Counting:
    """A compiler that leaves operations as they are, and counts."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.runs_of: list[int] = []
        """Runs of each that it made."""
        self.wrong = wrong
        """What it adds to all numbers of a step."""

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.runs_of.append(0)
        number = len(self.runs_of) - 1

        def run(*given: Tensor) -> Any:
            self.runs_of[number] += 1
            return graph.forward(*(each + self.wrong if each.ndim == 3 else each for each in given))

        return run

    @property
    def made(self) -> int:
        return len(self.runs_of)

    @property
    def runs(self) -> int:
        return sum(self.runs_of)


def sample(
    update: Update, name: str, dtype: torch.dtype, shape: tuple[int, int] = SHAPE
) -> tuple[Rows, Tensor]:
    """Rows in the middle of training, without what the update doesn't keep; numbers of five steps."""
    chance = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=chance, dtype=dtype) for _ in range(4)]
    first = drawn[2] if update.first else drawn[2][:0]
    second = drawn[3].abs() if update.second else drawn[3][:0]
    steps = [(0.1, 3), (0.01, 7), (1e-4, 1000), (0.5, 1), (0.02, 20)][: shape[0]]
    numbers = [update.numbers(optimizer_options(Choice(name)), rate, step) for rate, step in steps]
    table = torch.tensor(numbers, dtype=torch.float64).to(dtype).T.contiguous()
    return Rows(drawn[0], drawn[1], first, second), table[..., None]


def copy(rows: Rows) -> Rows:
    return Rows(rows.weights.clone(), rows.gradient.clone(), rows.first.clone(), rows.second.clone())


def eager(update: Update, rows: Rows, numbers: Tensor) -> Rows:
    rows = copy(rows)
    update.apply(rows, DECAYED, *numbers)
    return rows


def stepped(updates: CompiledUpdates, update: Update, rows: Rows, numbers: Tensor) -> Rows:
    rows = copy(rows)
    updates.step(update, rows, DECAYED, numbers)
    return rows


# What compiled updates give


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("name", UPDATES)
def test_compiled_and_eager_updates_agree(name: str, backend: str, dtype: torch.dtype) -> None:
    update, updates = UPDATES[name], CompiledUpdates(backend)
    rows, numbers = sample(update, name, dtype)
    found = stepped(updates, update, rows, numbers)
    assert updates.why_not is None
    assert counters["stats"]["unique_graphs"] == 1
    expected = eager(update, rows, numbers)
    for field in FIELDS:
        mine, theirs = getattr(found, field), getattr(expected, field)
        torch.testing.assert_close(mine, theirs, rtol=RELATIVE[dtype], atol=RELATIVE[dtype] / 10)
    assert not torch.equal(found.weights, rows.weights)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("name", UPDATES)
def test_nan_in_a_slot_stays_in_it(name: str, backend: str) -> None:
    update, updates = UPDATES[name], CompiledUpdates(backend)
    rows, numbers = sample(update, name, torch.float32)
    sick, sick_numbers = copy(rows), numbers.clone()
    for tensor in (sick.weights, sick.gradient, sick.first[:3], sick.second[:3]):
        tensor[2:3].fill_(torch.nan)
    sick_numbers[:, 2] = torch.nan
    found, other = stepped(updates, update, sick, sick_numbers), stepped(updates, update, rows, numbers)
    assert updates.why_not is None
    for field in FIELDS:
        mine, theirs = getattr(found, field), getattr(other, field)
        kept = [slot for slot in (0, 1, 3, 4) if slot < len(mine)]
        assert torch.equal(mine[kept], theirs[kept])
    assert found.weights[2].isnan().all()


# When they are made


def test_a_form_is_compiled_once_and_then_run() -> None:
    """The tables that a step reads are other tensors than those it was tried on, and fit it all the same."""
    backend = Counting()
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    for runs in range(2, 6):
        rows, numbers = sample(UPDATES["adam"], "adam", torch.float32)
        stepped(updates, UPDATES["adam"], rows, numbers)
        assert (backend.made, backend.runs) == (1, runs)
    rows, numbers = sample(UPDATES["adam"], "adam", torch.float32, (3, 20))
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert (backend.made, backend.runs) == (2, 7)


def test_what_is_compiled_in_one_precision_runs_in_the_others() -> None:
    """Which concerns products, of which an update has none."""
    backend, runs = Counting(), 1
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    precisions: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "tf32")
    for precision in precisions:
        with reproducible(1, precision):
            before = torch.backends.cuda.matmul.fp32_precision
            stepped(updates, UPDATES["adam"], *sample(UPDATES["adam"], "adam", torch.float32))
            assert torch.backends.cuda.matmul.fp32_precision == before
        assert (backend.made, backend.runs) == (1, runs := runs + 1)


def test_more_forms_than_torch_compiles_by_itself_are_compiled() -> None:
    backend = Counting()
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    shapes = list(product(range(2, 6), range(18, 23)))
    for shape in shapes:
        rows, numbers = sample(UPDATES["sgd"], "sgd", torch.float32, shape)
        stepped(updates, UPDATES["sgd"], rows, numbers)
    assert updates.why_not is None
    assert backend.made == len(shapes) > torch._dynamo.config.recompile_limit
    assert backend.runs == 2 * len(shapes)


def test_there_is_an_end_to_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_COMPILED", 2)
    backend = Counting()
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    for slots in (2, 3, 4, 5, 2):
        rows, numbers = sample(UPDATES["adam"], "adam", torch.float32, (slots, 20))
        found = stepped(updates, UPDATES["adam"], rows, numbers)
        assert torch.equal(found.weights, eager(UPDATES["adam"], rows, numbers).weights)
    assert (backend.made, backend.runs) == (2, 5)
    assert updates.why_not is None


def test_nothing_is_compiled_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Counting()
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    rows, numbers = sample(UPDATES["adam"], "adam", torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_capturing", lambda _: True)
        found = stepped(updates, UPDATES["adam"], rows, numbers)
        assert torch.equal(found.weights, eager(UPDATES["adam"], rows, numbers).weights)
        assert (backend.made, backend.runs) == (0, 0)
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert (backend.made, backend.runs) == (1, 2)
    # What would have torch compile it anew: another setting of the process.
    torch.set_default_dtype(torch.float64)
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert (backend.made, backend.runs) == (1, 2)


def test_one_thread_at_a_time_compiles_or_runs_what_is_compiled() -> None:
    """torch is told to compile nothing while it runs: another thread must not be at work on its own then."""
    locked: list[bool] = []

    def noting(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        locked.append(updates._alone.locked())

        def run(*given: Tensor) -> Any:
            locked.append(updates._alone.locked())
            return graph.forward(*given)

        return run

    updates = CompiledUpdates(noting)  # type: ignore[arg-type]
    rows, numbers = sample(UPDATES["adam"], "adam", torch.float32)
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert locked == [True, True, True]
    assert not updates._alone.locked()


def test_a_gpu_is_asked_whether_it_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert compiled._capturing(torch.device("cuda:0"))
    assert not compiled._capturing(torch.device("cpu"))


def test_only_a_gpus_updates_are_compiled() -> None:
    assert compiled_for(torch.device("cpu")) is None
    assert compiled_for(torch.device("cuda:0")) is compiled_for(torch.device("cuda:1")) is compiled.PROCESS
    pool = fused_pool([tiny(0, "mse", "adam")], recorder=Strict())
    train_epoch(pool)
    assert not counters["stats"]


# What can't be compiled


def assert_eager_from_now_on(updates: CompiledUpdates, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("adam", "sgd", "adam"):
            rows, numbers = sample(UPDATES[name], name, torch.float32)
            found = stepped(updates, UPDATES[name], rows, numbers)
            assert torch.equal(found.weights, eager(UPDATES[name], rows, numbers).weights)
    assert len([record for record in caplog.records if "not compiled" in record.message]) == 1


def test_without_a_compiler_updates_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def missing(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        tried.append(len(inputs))
        raise ModuleNotFoundError("no Triton")

    updates = CompiledUpdates(missing)  # type: ignore[arg-type]
    assert_eager_from_now_on(updates, caplog)
    assert "no Triton" in str(updates.why_not)
    assert len(tried) == 1


def test_a_kernel_that_can_not_run_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    def breaking(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            raise RuntimeError("no kernel image")

        return run

    updates = CompiledUpdates(breaking)  # type: ignore[arg-type]
    assert_eager_from_now_on(updates, caplog)
    assert updates.why_not == "RuntimeError: no kernel image"


@pytest.mark.parametrize("wrong", [1e-5, float("nan")])
def test_a_kernel_that_gives_other_numbers_is_not_taken(
    wrong: float, caplog: pytest.LogCaptureFixture
) -> None:
    updates = CompiledUpdates(Counting(wrong))  # type: ignore[arg-type]
    assert_eager_from_now_on(updates, caplog)
    assert updates.why_not == "the compiled update gave other numbers"


def test_a_kernel_that_is_wrong_in_one_row_is_not_taken() -> None:
    def off(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            for each in given:
                if each.shape == SHAPE:
                    each[3, 17] *= 1.001
            return graph.forward(*given)

        return run

    updates = CompiledUpdates(off)  # type: ignore[arg-type]
    rows, numbers = sample(UPDATES["adam"], "adam", torch.float32)
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert updates.why_not == "the compiled update gave other numbers"


def test_too_little_memory_is_no_reason_to_compile_no_more() -> None:
    short = [True]
    backend = Counting()

    class Short(CompiledUpdates):
        def _try(self, *given: Any) -> str | None:
            if short:
                raise torch.OutOfMemoryError("out of memory")
            return super()._try(*given)

    updates = Short(backend)  # type: ignore[arg-type]
    rows, numbers = sample(UPDATES["adam"], "adam", torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        stepped(updates, UPDATES["adam"], rows, numbers)
    short.clear()
    stepped(updates, UPDATES["adam"], rows, numbers)
    assert updates.why_not is None
    assert backend.made == 1


# In recorded steps


class Warmed(Strict):
    """Does the work before it records it, as on a GPU."""

    def __call__(self, work: Work) -> Recording:
        work()
        return super().__call__(work)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Recorded steps compile their updates as on a GPU, by a compiler that counts."""
    backend = Counting()
    updates = CompiledUpdates(backend)  # type: ignore[arg-type]
    monkeypatch.setattr(recorded, "compiled_for", lambda _: updates)
    return backend


def test_recorded_steps_take_compiled_updates_and_give_the_same(counting: Counting) -> None:
    starts = [tiny(number, "cross_entropy", name) for number, name in enumerate(UPDATES)]
    pool = fused_pool(starts, recorder=Warmed(watched=0))  # under watch torch runs nothing compiled
    train_epoch(pool)
    assert pool.why_unrecorded is None
    assert len(counting.runs_of) == len(set(UPDATES.values()))
    assert min(counting.runs_of) >= 3  # tried, done before it was recorded, and replayed
    other = fused_pool(starts)
    train_epoch(other)
    torch.testing.assert_close(
        pool.program.state.weights_TP, other.program.state.weights_TP, rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
def test_a_thousand_admissions_compile_nothing_new(counting: Counting) -> None:
    """Trials of all optimizers come and go; each kind and size is compiled when it first occurs."""
    slots = 6
    # Room for a batch of all in every step, so that all six take a step together.
    pool = empty_pool(tiny(0, "cross_entropy", "sgd"), slots=slots, capacity=60, recorder=Warmed(watched=0))
    names = list(UPDATES)
    every_size = [name for name in names for _ in range(slots)] + names * slots
    for number, name in enumerate(every_size):
        admit(pool, one_step(number, name))
    known = len(set(UPDATES.values())) * len({bucket(count, slots) for count in range(1, slots + 1)})
    assert counters["stats"]["unique_graphs"] == counting.made == known
    chance = random.Random(0)
    for number in range(1000):
        admit(pool, one_step(number, chance.choice(names)))
    assert counters["stats"]["unique_graphs"] == counting.made == known
    assert min(counting.runs_of) >= 3
    assert counting.runs > 500
    assert pool.why_unrecorded is None


def one_step(number: int, name: str) -> TrialStart:
    """A trial that ends after one step."""
    return tiny(number % 64, "cross_entropy", name, batch_size=160, epochs=1)


def admit(pool: Pool, start: TrialStart) -> None:
    """Let a trial in, after training until there is room."""
    while not pool.free:
        for ended in pool.step():
            assert isinstance(ended, Member)
            pool.retire(ended)
    pool.admit(new_member(pool, start))
