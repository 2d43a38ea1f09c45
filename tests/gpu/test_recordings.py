"""What CUDA graphs do to memory, streams, threads and random numbers, and what is left of those that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from objectives.recording import OnGpu, RecordingError

GPU = torch.device("cuda:0")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("default"),
]

SIZE = 512


@pytest.fixture
def weight() -> Iterator[Tensor]:
    yield torch.full((SIZE, SIZE), 0.01, device=GPU)
    torch.cuda.synchronize()


def gradient(x: Tensor, weight: Tensor) -> Tensor:
    """With a product, a convolution and a backward pass in autograd's own thread."""
    leaf = weight.detach().requires_grad_()
    y = torch.nn.functional.conv2d((x @ leaf)[None, None], leaf[None, None, :3, :3])
    (found,) = torch.autograd.grad(y.square().mean(), [leaf])
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    """But for the order in which a library adds."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def still_works(weight: Tensor) -> None:
    """Whatever has happened: memory can be freed, chance drawn, and work recorded and replayed."""
    torch.cuda.empty_cache()
    assert torch.rand(100, device=GPU).std() > 0
    x = torch.ones((SIZE, SIZE), device=GPU)
    recording = OnGpu(GPU)(partial(work, x, weight))
    for value in (1.0, 3.0):
        x.fill_(value)
        recording.replay()
        assert_close(recording.results[0], gradient(x, weight))


def work(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (gradient(x, weight),)


def test_what_is_replayed_is_what_would_be_done(weight: Tensor) -> None:
    still_works(weight)


def test_recordings_that_share_memory_may_be_replayed_in_any_order(weight: Tensor) -> None:
    """If their results are read before another is replayed."""
    recorder = OnGpu(GPU)
    inputs = [torch.ones((rows, SIZE), device=GPU) for rows in (512, 64, 256)]
    recordings = [recorder(partial(work, x, weight)) for x in inputs]
    for place in (2, 0, 1, 1, 0, 2, 1):
        inputs[place].fill_(place + 1.5)
        recordings[place].replay()
        found = recordings[place].results[0].clone()
        assert_close(found, gradient(inputs[place], weight))


def test_a_capture_that_breaks_leaves_nothing_behind(weight: Tensor) -> None:
    """It asks for a number of the device, which a graph can't hold."""
    before = torch.cuda.current_stream()

    def waits() -> tuple[Tensor]:
        found = gradient(weight, weight)
        return (found * found.sum().item(),)

    for _ in range(2):
        with pytest.raises(RecordingError, match="captur"):
            OnGpu(GPU)(waits)
        assert torch.cuda.current_stream() == before
        still_works(weight)


def test_an_error_in_a_capture_leaves_nothing_behind(weight: Tensor) -> None:
    def raises() -> tuple[Tensor]:
        found = gradient(weight, weight)
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("not this")
        return (found,)

    with pytest.raises(RecordingError, match="ValueError: not this"):
        OnGpu(GPU)(raises)
    still_works(weight)


def test_memory_that_was_short_in_a_capture_is_free_afterwards(weight: Tensor) -> None:
    recorder, held = OnGpu(GPU), []

    def greedy() -> tuple[Tensor]:
        found = torch.empty(1 << 28, device=GPU)
        if torch.cuda.is_current_stream_capturing():
            held.append(torch.empty(1 << 50, dtype=torch.int8, device=GPU))
        return (found,)

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(torch.OutOfMemoryError):
        recorder(greedy)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (64 << 20)
    still_works(weight)


def test_memory_of_recordings_that_are_let_go_of_is_free(weight: Tensor) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    recorder = OnGpu(GPU)
    held = [recorder(lambda: (torch.zeros(1 << 26, device=GPU).add_(1.0),)) for _ in range(3)]
    for each in held:
        each.replay()
    del each
    held.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + (64 << 20)


def test_other_threads_use_the_device_meanwhile(weight: Tensor) -> None:
    """They take memory of the host that a GPU can fetch, copy, and wait."""
    done, failed = threading.Event(), list[BaseException]()

    def busy() -> None:
        try:
            while not done.is_set():
                here = torch.ones(1 << 16, pin_memory=True)
                there = here.to(GPU, non_blocking=True)
                assert float((there * 2).sum()) == 2.0 * (1 << 16)
        except BaseException as error:  # noqa: BLE001 (the test says which)
            failed.append(error)

    others = [threading.Thread(target=busy) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(10):
            still_works(weight)
    finally:
        done.set()
        for other in others:
            other.join()
    assert failed == []
