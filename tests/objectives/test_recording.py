"""Recording on a GPU, with a GPU's calls stood in for: what is done how often, and what becomes of errors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from objectives import recording
from objectives.recording import WARM_UPS, OnGpu, RecordingError, Work, _Streams, recorder_for

GPU = torch.device("cuda:0")


class Stream:
    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


class Graph:
    """Replays nothing."""

    def __init__(self) -> None:
        self.memory: object = None

    def replay(self) -> None:
        pass

    def reset(self) -> None:
        self.memory = None

    def pool(self) -> object:
        if self.memory is None:
            raise RuntimeError("called without a preceding successful capture")
        return self.memory


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda of 2.11 for a GPU that there isn't.

    `stream` is the one that is used; `failing` captures from now on can't end, and leave behind what torch
    leaves: a stream, an allocator that waits and that refuses other captures, and chance that can't be drawn.
    """
    usual = Stream()
    gpu = SimpleNamespace(
        usual=usual, stream=usual, handles=0, modes=[], failing=0, waits_for=[], chance=True, released=[]
    )

    def handle() -> int:
        gpu.handles += 1
        return int(gpu.handles)

    @contextmanager
    def capturing(graph: Any, stream: Stream, capture_error_mode: str, pool: object = None) -> Iterator[None]:
        if gpu.waits_for:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        before, memory = gpu.stream, pool or object()
        gpu.waits_for.append(memory)
        gpu.stream, gpu.chance = stream, False
        gpu.modes.append(capture_error_mode)
        try:
            yield
        finally:
            if gpu.failing:
                gpu.failing -= 1
                raise RuntimeError("operation failed due to a previous error during capture\nmore")
            graph.memory, gpu.chance = memory, True
            gpu.waits_for.remove(memory)
        gpu.stream = before

    zeros = torch.zeros

    def on_host(*sizes: int, **options: Any) -> Tensor:
        return zeros(*sizes, **(options | {"device": "cpu"}))

    for name, stand_in in {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "current_device": lambda: 0,
        "current_stream": lambda: gpu.stream,
        "set_stream": lambda stream: setattr(gpu, "stream", stream),
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph_pool_handle": handle,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "zeros", on_host)
    ended = {
        "_cuda_endAllocateToPool": lambda _, memory: gpu.waits_for.remove(memory),
        "_cuda_releasePool": lambda _, memory: gpu.released.append(memory),
    }
    for name, stand_in in ended.items():
        monkeypatch.setattr(torch._C, name, stand_in, raising=False)
    monkeypatch.setattr("objectives.recording._streams", _Streams())
    monkeypatch.setattr("objectives.recording._failed", [])
    return gpu


def test_work_is_done_a_few_times_before_it_is_captured(cuda: SimpleNamespace) -> None:
    done: list[bool] = []

    def work() -> tuple[Tensor]:
        done.append(cuda.stream is cuda.usual)
        return (torch.ones(1),)

    recording = OnGpu(GPU)(work)
    assert done == [True] * WARM_UPS + [False]
    assert len(recording.results) == 1
    assert cuda.stream is cuda.usual
    assert cuda.modes == ["thread_local"]


def test_graphs_share_memory_while_one_of_them_holds_it(cuda: SimpleNamespace) -> None:
    recorder = OnGpu(GPU)
    held = [recorder(lambda: ()) for _ in range(3)]
    assert cuda.handles == 1
    del held[:2]
    gc.collect()
    held.append(recorder(lambda: ()))
    assert cuda.handles == 1
    held.clear()
    gc.collect()
    recorder(lambda: ())
    assert cuda.handles == 2


def test_all_captures_of_a_thread_are_on_one_stream(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that libraries keep memory for one, however many trials train alone."""
    made: list[Stream] = []

    class Counted(Stream):
        def __init__(self, *_: object) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(torch.cuda, "Stream", Counted)
    for _ in range(3):
        OnGpu(GPU)(lambda: ())
    assert len(made) == 1
    elsewhere = Thread(target=lambda: OnGpu(GPU)(lambda: ()))
    elsewhere.start()
    elsewhere.join()
    assert len(made) == 2


def test_what_can_not_be_captured_is_an_error_of_its_own(cuda: SimpleNamespace) -> None:
    cuda.failing = 1
    with pytest.raises(RecordingError, match=r"RuntimeError: operation failed due to a previous.*capture$"):
        OnGpu(GPU)(lambda: ())
    assert cuda.stream is cuda.usual


def test_what_broke_a_capture_is_told(cuda: SimpleNamespace) -> None:
    cuda.failing = 1
    with pytest.raises(RecordingError, match=r"previous error.*, after ValueError: it can't be captured$"):
        OnGpu(GPU)(in_capture(cuda, ValueError("it can't be captured")))


def test_after_a_capture_that_failed_everything_else_goes_on(cuda: SimpleNamespace) -> None:
    """Other captures, the freeing of memory, and random numbers; in memory of their own."""
    recorder, other = OnGpu(GPU), OnGpu(GPU)
    held = [recorder(lambda: ()), other(lambda: ())]
    cuda.failing = 1
    with pytest.raises(RecordingError):
        recorder(lambda: ())
    assert cuda.waits_for == []
    assert cuda.chance
    assert cuda.released == [1]  # by the capture that failed; that which is recorded there holds it still
    assert cuda.stream is cuda.usual
    held += [recorder(lambda: ()), other(lambda: ())]
    assert cuda.handles == 3
    assert len(recording._failed) == 1


def test_a_capture_that_ended_after_an_error_gives_its_memory_back(cuda: SimpleNamespace) -> None:
    with pytest.raises(RecordingError, match=r"^ValueError: no$"):
        OnGpu(GPU)(in_capture(cuda, ValueError("no")))
    assert not recording._failed
    assert cuda.released == []
    assert cuda.modes == ["thread_local"]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_stays_that_even_if_the_capture_can_not_end(
    cuda: SimpleNamespace, failing: int, error: Exception
) -> None:
    cuda.failing = failing
    with pytest.raises(type(error), match=str(error).replace("(", r"\(").replace(")", r"\)")):
        OnGpu(GPU)(in_capture(cuda, error))
    assert cuda.stream is cuda.usual


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ValueError])
@pytest.mark.parametrize("failing", [0, 1])
def test_what_raised_is_not_kept_alive(
    cuda: SimpleNamespace, kind: type[Exception], failing: int, uncollected: None
) -> None:
    """The tensors of a step that had too little memory are free when the next, smaller one begins."""
    kept: list[ref[Graph]] = []
    cuda.failing = failing

    def work() -> tuple[Tensor]:
        large = Graph()  # stands for a tensor
        kept.append(ref(large))
        if cuda.stream is not cuda.usual:
            raise kind("out of memory")
        return (torch.ones(1),)

    with suppress(torch.OutOfMemoryError, RecordingError):
        OnGpu(GPU)(work)
    assert len(kept) == WARM_UPS + 1
    assert not any(each() for each in kept)


def test_nothing_is_collected_while_a_gpu_captures(cuda: SimpleNamespace) -> None:
    """A graph among cyclic garbage is ended when that is collected; not in the midst of a capture."""
    collects: list[bool] = []

    def work() -> tuple[()]:
        collects.append(gc.isenabled())
        return ()

    OnGpu(GPU)(work)
    assert collects == [True] * WARM_UPS + [False]
    with pytest.raises(RecordingError):
        OnGpu(GPU)(in_capture(cuda, ValueError()))
    assert gc.isenabled()


def in_capture(cuda: SimpleNamespace, error: Exception) -> Work:
    """Work that raises, but only while it is captured."""

    def work() -> tuple[Tensor]:
        if cuda.stream is not cuda.usual:
            raise error
        return (torch.ones(1),)

    return work


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_only_a_gpus_steps_are_recorded() -> None:
    assert recorder_for(torch.device("cpu")) is None
    assert isinstance(recorder_for(GPU), OnGpu)
