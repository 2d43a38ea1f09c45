"""Work of a device that is recorded once and then replayed: many small operations for the price of one call.

A GPU's operations are so short that asking for them one by one takes longer than they do. A CUDA graph is
asked for at once; in return everything in it is fixed as it was recorded: operations, shapes, plain numbers,
and the places in memory that are read and written. So what changes from replay to replay has to be written
beforehand into tensors that stay where they are, and nothing in it may wait for the device, draw from a
generator (`objectives.chance` needs none), or decide by what a tensor holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

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
    """A `Recorder` by CUDA graphs, which share their memory: they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        """Those that somebody can still replay."""
        self._aside: torch.cuda.Stream | None = None

    def __call__(self, work: Work) -> Recording:
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                return self._record(work)
            except Exception as error:
                # A capture that fails may leave its stream as the one that is used.
                torch.cuda.set_stream(before)
                self._aside = None
                for cause in _behind(error):
                    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
                        raise cause from None
                says = str(error).splitlines()[:1]
                raise RecordingError(": ".join([type(error).__name__, *says])) from error

    def _record(self, work: Work) -> Recording:
        # One stream for all captures: memory of another's is not shared.
        aside = self._aside = self._aside or torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Only memory that a graph still holds can be shared.
        other = next(iter(self._graphs), None)
        memory = torch.cuda.graph_pool_handle() if other is None else other.pool()
        # Other threads of the process may go on using the device.
        with torch.cuda.graph(graph, pool=memory, stream=aside, capture_error_mode="thread_local"):
            results = work()
        self._graphs.add(graph)
        return Recording(graph.replay, results)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those while handling which it was raised: ending a capture may fail for another."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def recorder_for(device: torch.device) -> Recorder | None:
    """What records the steps of trainers on a device; None: nothing, they gain nothing by it."""
    return OnGpu(device) if device.type == "cuda" else None
