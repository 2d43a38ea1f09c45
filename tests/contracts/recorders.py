"""A recorder without a GPU that is as strict as a CUDA graph: what it replays must be what it recorded.

It does the work again, with the closure that it recorded, and watches every operation: a replay must consist
of the same operations, on the same plain numbers, reading the same places in memory, as when it was recorded.
Whatever differs from replay to replay can then only be in tensors that stay where they are. Operations that a
graph can't hold are refused: those that wait for the device, draw random numbers, or whose result's shape is
not known before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from objectives.devices import Arriving
from objectives.recording import Recording, RecordingError, Work

WAITING = frozenset(
    {
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "repeat_interleave",
        "_unique2",
    }
)
"""Operations that give the host something of the device's, or wait for it to know a shape."""

CHANCE = frozenset({"bernoulli", "bernoulli_", "rand", "randn", "randperm", "uniform_", "normal_", "dropout"})


def waits(func: Any, args: Sequence[Any]) -> bool:
    """Whether the host waits for the device in an operation, if its tensors were on a GPU."""
    name = func.overloadpacket.__name__
    by_mask = name in {"index", "index_put", "index_put_", "_index_put_impl_"} and any(
        isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
    )
    return name in WAITING or by_mask


class Watching(TorchDispatchMode):
    """Notes every operation: its name, its plain numbers, and what it reads of before the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, ...]] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs or {}))
        if waits(func, args):
            raise RuntimeError(f"{name} waits for the device")
        if name in CHANCE or any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{name} draws random numbers")
        self.seen.append((str(func), *(self._described(leaf) for leaf in leaves)))
        result = func(*args, **(kwargs or {}))
        given = {_place(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and _place(made) not in given:
                self._made[_place(made)] = made  # kept, so that no other gets its place
        return result

    def _described(self, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        shape = tuple(leaf.shape), leaf.stride(), leaf.dtype
        return shape if _place(leaf) in self._made else (*shape, leaf.data_ptr())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Strict:
    """A `Recorder` that does the work again, and sees to it that a graph would have done the same.

    Of each recording, the first `watched` replays are held against it; watching takes its time.
    """

    def __init__(self, watched: int = 2) -> None:
        self.recordings = 0
        self.replays = 0
        self._watched = watched

    def __call__(self, work: Work) -> Recording:
        self.recordings += 1
        for _ in range(2):
            try:
                with Watching() as recorded:
                    results = work()
            except RuntimeError as error:
                raise RecordingError(str(error)) from error
        first, left = recorded.seen, [self._watched]

        def replay() -> None:
            self.replays += 1
            left[0] -= 1
            if left[0] < 0:
                found = work()
            else:
                with Watching() as again:
                    found = work()
                assert len(again.seen) == len(first), "other operations than were recorded"
                for mine, theirs in zip(again.seen, first, strict=True):
                    assert mine == theirs, f"not as it was recorded: {mine}, not {theirs}"
            for kept, value in zip(results, found, strict=True):
                kept.detach().copy_(value)

        return Recording(replay, results)


class Forgetful:
    """A `Recorder` that holds nothing of the work, as a CUDA graph doesn't.

    A replay does nothing but see that what was there before, and was read by the work, is still somebody's.
    """

    def __init__(self) -> None:
        self.read = 0
        """Tensors that were looked after, of all replays."""
        self.alive: WeakSet[_Held] = WeakSet()
        """A thing for each recording that somebody can still replay."""

    def __call__(self, work: Work) -> Recording:
        with _Reading() as reading:
            results = work()
        held = _Held([StorageWeakRef(storage) for storage in reading.found.values()])
        del reading
        self.alive.add(held)

        def replay() -> None:
            assert not any(storage.expired() for storage in held.storages), "what it reads is gone"
            self.read += len(held.storages)

        return Recording(replay, results)


class _Held:
    def __init__(self, storages: list[StorageWeakRef]) -> None:
        self.storages = storages


class _Reading(TorchDispatchMode):
    """Notes the storages that operations of the block read, but for those that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, torch.UntypedStorage] = {}
        self._made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        for leaf in given:
            if _place(leaf) not in self._made:
                self.found[_place(leaf)] = leaf.untyped_storage()
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and _place(made) not in self.found:
                self._made[_place(made)] = made.untyped_storage()  # kept, so that no other gets its place
        return result


ASKING = frozenset({"tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"})
"""Methods by which the host asks for what a tensor holds; on a CPU some of them are no operation."""


class BothModes(TorchFunctionMode):
    """Watches torch's functions, and with another mode the operations that they are made of."""

    def __init__(self, operations: TorchDispatchMode) -> None:
        super().__init__()
        self._operations = operations

    def __enter__(self) -> Self:
        super().__enter__()
        self._operations.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._operations.__exit__(*raised)
        super().__exit__(*raised)


class Waits(BothModes):
    """Notes what the host would wait for in the block, if tensors were on a GPU.

    `beside`: tensors that are on the host there too. What has come by `Arriving` is there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, beside: Sequence[Tensor] = ()) -> None:
        super().__init__(_Operations(self))
        self.seen: list[str] = []
        self._here = {_place(tensor) for tensor in beside}
        self._kept: list[Tensor] = []
        here = Arriving.here

        def noted(arriving: Arriving) -> Tensor:
            self._kept.append(here(arriving))
            self._here.add(_place(self._kept[-1]))
            return self._kept[-1]

        monkeypatch.setattr(Arriving, "here", noted)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ASKING:
            self.note(func.__name__, args)
        return func(*args, **(kwargs or {}))

    def note(self, name: str, args: Sequence[Any]) -> None:
        """Something was asked of tensors."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if not all(_place(tensor) in self._here for tensor in tensors):
            self.seen.append(name)


class _Operations(TorchDispatchMode):
    def __init__(self, noting: Waits) -> None:
        super().__init__()
        self._noting = noting

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if waits(func, args):
            self._noting.note(str(func), args)
        return func(*args, **(kwargs or {}))
