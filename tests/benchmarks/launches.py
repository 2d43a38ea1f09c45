"""What a GPU would be asked for by some work, counted on torch's meta device: kernels, bytes and FLOPs.

An operation of torch is one kernel that reads each number of its inputs once and writes each of its outputs
once, but for what is known to be otherwise: one that looks at a tensor in another way is none, a convolution
by cuDNN is followed by a kernel that adds the bias, its backward is up to three, max-pooling's backward fills
its result with zeros first, a selection reads what it selects. A kernel of ours in Triton's language is what
it was called with. Layouts follow cuDNN's: channels last if an input is. What libraries do beside that
(workspaces, changes of layout of their own) is not seen: counts are the least there is.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")

FREE = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size")
"""Beginnings of the names of operations that no kernel is started for."""

SELECTS = frozenset({"index_select", "index", "gather", "embedding"})
"""Read of their source no more than they give."""

WRITES_ONLY = frozenset({"zero_", "fill_", "copy_"})
"""Don't read what they change."""

SCATTERS = frozenset({"index_copy_", "index_fill_"})
"""Write, and don't read, as much as is selected."""

PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "_grouped_mm"})

WRITTEN = frozenset(
    {"y", "dx", "dkernel", "dbias", "result", "words", "chosen", "partial", "dlogits", "lost", "shown"}
)
"""Names of the arguments that our kernels in Triton's language write to."""

CHANGED = frozenset({"sums", "weights", "first", "second", "loss", "totals"})
"""Those that they read as well."""

SOME: Mapping[tuple[str, str], str] = {
    **{("_update", name): "slots" for name in ("weights", "gradient", "first", "second")},
    **{("_end_update", name): "slots" for name in ("loss", "totals")},
    ("_losses", "labels"): "indices",
    ("_shown", "pictures"): "indices",
    ("_places", "order"): "places",
}
"""Kernel and an argument of which it looks at some lines alone → the argument that has as many, or more: of
places a number for each line.
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel."""

    place: str
    """Where in the program it comes from."""
    name: str
    read: int
    """Bytes."""
    written: int
    flops: int = 0
    """Of products alone."""


class Places:
    """Tells by the stack which part of the program an operation belongs to; a backward one, as its forward.

    `known`: name of a file and of a function in it → what it is called, or what finds that in its variables.
    """

    def __init__(self, known: Mapping[tuple[str, str], str | Callable[[Mapping[str, Any]], str]]) -> None:
        self._known = known
        self._of_node: dict[int, str] = {}
        """Number of a node of the graph → the place it was made in."""

    def now(self) -> str:
        """The place of the operation that is done now."""
        node = torch._C._current_autograd_node()
        if node is not None:
            number = node._sequence_nr()  # type: ignore[attr-defined]  # torch lacks its type
            return self._of_node.get(number, "elsewhere") + ", backward"
        place = self._by_stack()
        self._of_node[torch.autograd._get_sequence_nr() - 1] = place  # type: ignore[attr-defined]  # likewise
        return place

    def _by_stack(self) -> str:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            found = self._known.get((code.co_filename.rpartition("/")[2], code.co_qualname))
            if found is not None:
                return found if isinstance(found, str) else found(frame.f_locals)
            frame = frame.f_back
        return "elsewhere"


class Launches(TorchDispatchMode):
    """Notes in `seen` the kernels of what is done in the block."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.seen: list[Launch] = []
        self._places = places
        self._fused: list[tuple[list[Tensor], list[Tensor]]] = []
        """Read and written, of each operation of what is one kernel."""
        self._fusing = False

    @contextlib.contextmanager
    def fused(self, name: str) -> Iterator[None]:
        """What is done in the block is one kernel: it reads each tensor from outside once, and writes once
        what is changed of these.
        """
        self._fused, self._fusing = [], True
        try:
            yield
        finally:
            self._fusing = False
        made: set[int] = set()
        read: dict[tuple[object, ...], Tensor] = {}
        written: dict[tuple[object, ...], Tensor] = {}
        for taken, given in self._fused:
            outside = [tensor for tensor in taken if _storage(tensor) not in made]
            read |= {_identity(tensor): tensor for tensor in outside}
            changed = {_storage(tensor) for tensor in outside}
            for tensor in given:
                if _storage(tensor) in changed:
                    written[_identity(tensor)] = tensor
                else:
                    made.add(_storage(tensor))
        self.note(name, list(read.values()), list(written.values()))

    def note(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor], flops: int = 0) -> None:
        """A kernel was started."""
        self.seen.append(Launch(self._places.now(), name, bytes_of(read), bytes_of(written), flops))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        result = _laid_out(name, args, func(*args, **given))
        made = _tensors(result)
        if func.is_view or name.startswith(FREE) or not any(one.device == META for one in made):
            return result
        read = _tensors((args, {key: value for key, value in given.items() if key != "out"}))
        if self._fusing:
            self._fused.append((read, made))
        else:
            for launch in _launches(name, args, read, made):
                self.note(*launch)
        return result


Noted = tuple[str, list[Tensor], list[Tensor], int]
"""Arguments of `Launches.note`."""


def _launches(name: str, args: Sequence[Any], read: list[Tensor], made: list[Tensor]) -> list[Noted]:
    """The kernels of an operation."""
    if name == "convolution":
        x, kernel, bias = args[:3]
        flops = 2 * made[0].numel() * kernel[0].numel()
        added = [] if bias is None else [("bias added", [made[0], bias], made, 0)]
        return [("convolution", [x, kernel], made, flops), *added]
    if name == "convolution_backward":
        dy, x, kernel = args[:3]
        flops, (dx, dkernel, dbias) = 2 * dy.numel() * kernel[0].numel(), _wanted(made, args[10])
        return [
            *([("gradient of the map", [dy, kernel], [dx], flops)] if dx is not None else []),
            *([("gradient of the kernel", [dy, x], [dkernel], flops)] if dkernel is not None else []),
            *([("gradient of the bias", [dy], [dbias], 0)] if dbias is not None else []),
        ]
    if name == "max_pool2d_with_indices_backward":
        return [("zero_", [], made, 0), (name, [args[0], args[-1]], made, 0)]
    if name in SELECTS:
        rest = [tensor for tensor in read if tensor is not args[0]]
        return [(name, [made[0], *rest], made, 0)]
    if name in SCATTERS:
        given = [leaf for leaf in args[2:] if isinstance(leaf, Tensor)]
        changed = given[1:] or [args[0].narrow(args[1], 0, given[0].numel())]
        return [(name, given, changed, 0)]
    if name in WRITES_ONLY:
        return [(name, [tensor for tensor in read if tensor is not args[0]], made, 0)]
    if name in PRODUCTS:
        left = args[1 if name in {"addmm", "baddbmm"} else 0]
        return [(name, read, made, 2 * made[0].numel() * left.shape[-1])]
    return [(name, read, made, 0)]


def _wanted(made: Sequence[Tensor], mask: Sequence[bool]) -> list[Tensor | None]:
    left = iter(made)
    return [next(left) if asked else None for asked in mask]


def _laid_out(name: str, args: Sequence[Any], result: Any) -> Any:
    """As cuDNN lays it out: the meta device has rules of its own for convolutions and pools."""
    last = torch.channels_last
    if name in {"convolution", "max_pool2d_with_indices", "max_pool2d_with_indices_backward"}:
        given = [leaf for leaf in args[:2] if isinstance(leaf, Tensor) and leaf.ndim == 4]
        if any(tensor.is_contiguous(memory_format=last) for tensor in given):
            made = [tensor.contiguous(memory_format=last) for tensor in _tensors(result)]
            return made[0] if isinstance(result, Tensor) else tuple(made)
    return result


class Counted:
    """Stands for a kernel in Triton's language: what it is started with is noted in `mode`."""

    def __init__(self, kernel: Any, mode: Callable[[], Launches | None]) -> None:
        self._kernel, self._mode = kernel, mode

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def start(*arguments: Any, **fixed: Any) -> None:
            mode = self._mode()
            if mode is None:
                return
            named = dict(zip(self._kernel.arg_names, arguments, strict=False)) | fixed
            tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
            mine = self._kernel.fn.__name__
            for (kernel, name), by in SOME.items():
                if kernel == mine and name in tensors:
                    lines = tensors[name].flatten() if name == "order" else tensors[name]
                    tensors[name] = lines[: tensors[by].shape[-1]]
            written = [tensor for name, tensor in tensors.items() if name in WRITTEN | CHANGED]
            read = [tensor for name, tensor in tensors.items() if name not in WRITTEN]
            mode.note(mine.strip("_").replace("_", " "), read, written, _flops(named))

        return start


def _flops(named: Mapping[str, Any]) -> int:
    """Of a convolution's kernel, by the sizes that it is compiled for."""
    if "HIGH" not in named:
        return 0
    places = named["images"] * named["LINES"] * named["COLUMNS"] * named["rows"]
    return int(2 * places * named["OUT"] * named["HIGH"] * named["WIDE"] * named["CHANNELS"])


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Of all numbers in them, each counted once: one that is broadcast, or given twice, is one."""
    return sum(_size(one) for one in {_identity(tensor): tensor for tensor in tensors}.values())


def _size(tensor: Tensor) -> int:
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    numbers = math.prod(side for side, stride in sides if stride)
    return min(numbers * tensor.element_size(), tensor.untyped_storage().nbytes())


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return _storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
