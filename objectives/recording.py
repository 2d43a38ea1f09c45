"""Work of a device that is recorded once and then replayed: many small operations for the price of one call.

A GPU's operations are so short that asking for them one by one takes longer than they do. A CUDA graph is
asked for at once; in return everything in it is fixed as it was recorded: operations, shapes, plain numbers,
and the places in memory that are read and written. So what changes from replay to replay has to be written
beforehand into tensors that stay where they are, and nothing in it may wait for the device, draw from a
generator (`objectives.chance` needs none), or decide by what a tensor holds.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from objectives.shortage import says_out_of_memory

WARM_UPS = 3
"""Times that work is done before it is recorded: it chooses kernels, and allocates what libraries keep."""

Work: TypeAlias = Callable[[], Sequence[Tensor]]
"""Does the work, and returns those of its results that it has not written into tensors of the caller's."""


class RecordingError(Exception):
    """Work that can't be recorded; the message says why. It can still be done as it is."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Work that can be done again."""

    replay: Callable[[], None]
    results: Sequence[Tensor]
    """Where a replay leaves what the work returned; until the next replay of the same recorder."""


Recorder: TypeAlias = Callable[[Work], Recording]
"""Records work. It is done a few times for that, never counting as a replay: let it change nothing then that
matters. Raises `RecordingError`, and what the work raises where the device has too little memory."""


class OnGpu:
    """A `Recorder` by CUDA graphs, which share their memory.

    They may be replayed in any order, all on one stream: nothing that a recording needs lies in that memory
    from one replay to the next, and its results are read before another is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        """Those that somebody can still replay."""

    def __call__(self, work: Work) -> Recording:
        with torch.cuda.device(self._device):
            try:
                return self._record(work)
            except Exception as error:  # noqa: BLE001 (it is raised below, in one form or another)
                told = _told(error)
            try:
                raise told
            finally:
                del told  # it would keep itself alive, with all tensors of where it happened

    def _record(self, work: Work) -> Recording:
        before, aside = torch.cuda.current_stream(), _aside()
        aside.wait_stream(before)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        before.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Only memory that a graph still holds can be shared.
        other = next(iter(self._graphs), None)
        memory = torch.cuda.graph_pool_handle() if other is None else other.pool()
        try:
            # Other threads of the process may go on using the device.
            with (
                _nothing_collected(),
                torch.cuda.graph(graph, pool=memory, stream=aside, capture_error_mode="thread_local"),
            ):
                results = work()
        except BaseException:
            # A capture that fails may leave its stream as the one that is used.
            torch.cuda.set_stream(before)
            self._graphs = WeakSet()  # nor may their memory be captured in again
            _put_right(graph, memory)
            raise
        self._graphs.add(graph)
        return Recording(graph.replay, results)


class _Streams(threading.local):
    """The stream of a thread, by GPU, on which it captures."""

    def __init__(self) -> None:
        self.of: dict[int, torch.cuda.Stream] = {}


_streams = _Streams()

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose captures did not end: torch may still ask them whether they are what a stream captures."""


def _aside() -> torch.cuda.Stream:
    """The stream of this thread for captures on the current GPU.

    One for all of them: memory of another's is not shared, and libraries keep memory for each stream.
    """
    place = torch.cuda.current_device()
    if place not in _streams.of:
        _streams.of[place] = torch.cuda.Stream(place)
    return _streams.of[place]


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Python frees no cyclic garbage in the block: what it frees of a GPU can break a capture."""
    usual = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if usual:
            gc.enable()


def _put_right(graph: torch.cuda.CUDAGraph, memory: tuple[int, int]) -> None:
    """Undo what is left of a capture in which something was raised, as well as can be.

    Where it could not end either, torch's allocator goes on waiting for that (2.11, 2.12): it frees no cached
    memory any more, and refuses to empty its cache, with which every other capture begins. And a GPU's own
    random numbers can't be drawn (2.11) until another capture ends: so here is one.
    """
    place = torch.cuda.current_device()
    _streams.of.pop(place, None)
    try:
        graph.pool()
    except RuntimeError:
        _failed.append(graph)
    else:
        graph.reset()  # it has ended: its memory is wanted elsewhere
        return
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(place, memory)
        torch._C._cuda_releasePool(place, memory)
    with suppress(Exception):
        blank, aside = torch.zeros(1, device=torch.device("cuda", place)), torch.cuda.Stream(place)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=aside, capture_error_mode="thread_local"):
            blank.add_(1)


def _told(error: Exception) -> BaseException:
    """What is to be raised for what was raised in recording."""
    causes = list(_behind(error))
    for cause in causes:
        if says_out_of_memory(cause):
            return cause
    lines = [": ".join([type(cause).__name__, *str(cause).splitlines()[:1]]) for cause in causes[:2]]
    told = RecordingError(", after ".join(lines))
    told.__cause__ = error
    return told


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those while handling which it was raised: ending a capture may fail for another."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def recorder_for(device: torch.device) -> Recorder | None:
    """What records the steps of trainers on a device; None: nothing, they gain nothing by it."""
    return OnGpu(device) if device.type == "cuda" else None
