"""Recording on a GPU, with a GPU's calls stood in for: what is done how often, and what becomes of errors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.recording import WARM_UPS, OnGpu, RecordingError, recorder_for

GPU = torch.device("cuda:0")


class Stream:
    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


class Graph:
    """Replays nothing; fails when its capture ends, if it is to."""

    fails = False

    def __init__(self) -> None:
        self.memory: object = None

    def replay(self) -> None:
        pass

    def pool(self) -> object:
        return self.memory


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda for a GPU that there isn't; its `stream` is the one that is used."""
    usual = Stream()
    gpu = SimpleNamespace(usual=usual, stream=usual, handles=0, modes=[])

    def handle() -> int:
        gpu.handles += 1
        return int(gpu.handles)

    @contextmanager
    def capturing(graph: Any, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        graph.memory = pool
        gpu.stream = stream
        gpu.modes.append(capture_error_mode)
        try:
            yield
        finally:
            if Graph.fails:
                raise RuntimeError("operation failed due to a previous error during capture\nmore")
        gpu.stream = usual

    for name, stand_in in {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "current_stream": lambda: gpu.stream,
        "set_stream": lambda stream: setattr(gpu, "stream", stream),
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph_pool_handle": handle,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(Graph, "fails", False)
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


def test_what_can_not_be_captured_is_an_error_of_its_own(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "fails", True)
    with pytest.raises(RecordingError, match=r"RuntimeError: operation failed due to a previous.*capture$"):
        OnGpu(GPU)(lambda: ())
    assert cuda.stream is cuda.usual


def test_too_little_memory_stays_that_even_if_the_capture_can_not_end(
    cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "fails", True)

    def work() -> tuple[Tensor]:
        if cuda.stream is not cuda.usual:
            raise torch.OutOfMemoryError("out of memory")
        return (torch.ones(1),)

    with pytest.raises(torch.OutOfMemoryError):
        OnGpu(GPU)(work)
    assert cuda.stream is cuda.usual


def test_only_a_gpus_steps_are_recorded() -> None:
    assert recorder_for(torch.device("cpu")) is None
    assert isinstance(recorder_for(GPU), OnGpu)
