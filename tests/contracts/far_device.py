"""A GPU without one: tensors of torch's meta device, and a mode that is as strict as a real one is slow.

Tensors of the meta device have shapes and no numbers, so that steps of any size take no time, and whoever
looks into one fails. `FarDevice` notes what a GPU would refuse or wait for: an operation on tensors of the
device and of the host together, a copy between the two for which the host waits, and whatever asks a tensor
of the device for a number (which gets one, made up, so that the work goes on). It also counts operations on
the device: each is at least one launch of a kernel.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contracts.recorders import BothModes, waits

FAR = torch.device("meta")

COPIES = frozenset({"copy_", "_to_copy"})
"""What goes between host and device, and need not be waited for."""

MADE_UP = {"item": 1.0, "__float__": 1.0, "__int__": 1, "__index__": 1, "__bool__": True}
"""Method → what it gives for a tensor of the device."""


def here(what: str) -> str:
    """With the line of ours that asked for it."""
    for frame in reversed(traceback.extract_stack()):
        if "/objectives/" in frame.filename and "/tests/" not in frame.filename:
            return f"{what}, {Path(frame.filename).name}:{frame.lineno}"
    return what


class FarDevice(BothModes):
    """Notes in `mixed` and `waited` what must not happen on a GPU, and counts in `operations`.

    Within the block a tensor that was asked for by `Arriving` is all zeros.
    """

    def __init__(self) -> None:
        super().__init__(_Operations(self))
        self.mixed: list[str] = []
        """Operations on tensors of both."""
        self.waited: list[str] = []
        """What the host would have waited for."""
        self.operations: list[str] = []
        """On the device, but for those that only look at a tensor in another way, or make an empty one."""
        self.sent = 0
        """Copies from the host to the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if name in {"tensor", "as_tensor"} and _is_far(given.get("device")):
            self.waited.append(here(f"{name} on the device"))  # of memory that a GPU can't fetch by itself
        if args and isinstance(args[0], Tensor) and args[0].device == FAR:
            if name in MADE_UP:
                self.waited.append(here(name))
                return MADE_UP[name]
            if name in {"tolist", "cpu", "numpy"}:
                self.waited.append(here(name))
                near = torch.zeros(args[0].shape, dtype=args[0].dtype)
                return near if name == "cpu" else getattr(near, name)()
        return func(*args, **given)


class _Operations(TorchDispatchMode):
    def __init__(self, noting: FarDevice) -> None:
        super().__init__()
        self._noting = noting

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        far, near = (
            any((tensor.device == FAR) is there for tensor in tensors if tensor.ndim or there)
            for there in (True, False)
        )
        if name in COPIES and (crossing := _crossing(name, tensors, given)):
            self._noting.sent += crossing == "to the device"
            if not (given.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
                self._noting.waited.append(here(f"{name} {crossing}"))
            if crossing == "to the host":
                return tensors[0].zero_() if name == "copy_" else torch.zeros(tensors[0].shape)
        elif far and near:
            self._noting.mixed.append(here(str(func)))
        if far and waits(func, args):
            self._noting.waited.append(here(str(func)))
        result = func(*args, **given)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.device == FAR]
        if (far or made) and not func.is_view and not name.startswith(("empty", "new_empty", "detach")):
            self._noting.operations.append(name)
        return result


def _crossing(name: str, tensors: Sequence[Tensor], given: dict[str, Any]) -> str | None:
    """Which way a copy goes; None: it stays where it is."""
    if name == "copy_":
        target, source = (_is_far(tensor.device) for tensor in tensors[:2])
    else:
        source = _is_far(tensors[0].device)
        target = _is_far(given.get("device", tensors[0].device) or tensors[0].device)
    if target == source:
        return None
    return "to the device" if target else "to the host"


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device) == FAR
