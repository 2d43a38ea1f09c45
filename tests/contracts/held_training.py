"""Real training that heeds a `Hold`, by engines that count epochs and by a model that counts steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from objectives.base import EpochEnd, TrialFailure
from objectives.fused import FusedEngine
from objectives.trainer import PlainEngine
from tests.contracts.hold import heed


class _Held:
    """An engine's part that waits before it advances, and counts the epochs that it has trained."""

    done = 0

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        heed(self.done)
        ends: Sequence[EpochEnd | TrialFailure] = super().advance()  # type: ignore[misc]  # the engine's
        self.done += len(ends)
        return ends


class HeldPlain(_Held, PlainEngine):
    """The plain engine, which waits before an epoch."""


class HeldFused(_Held, FusedEngine):
    """The fused engine, which waits before it advances."""


class _Steps:
    """Steps of all trials of this process."""

    done = 0


class _HeldNetwork(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            heed(_Steps.done)
            _Steps.done += 1
        scores: Tensor = super().forward(images)
        return scores


def network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A small convolutional network with dropout, which waits before a step: for commands, whose engines
    are ours alone.
    """
    channels, height, width = input_shape
    return _HeldNetwork(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * height * width, classes),
    )


PLAIN = f"{__name__}:{HeldPlain.__name__}"
FUSED = f"{__name__}:{HeldFused.__name__}"
NETWORK = f"{__name__}:{network.__name__}"
IN_FILE = (
    "model: {name: cnn, depth: 1, width: 4, dense: 8}",
    f"model: {NETWORK}\nallow_imports: [{__name__}]",
)
"""A replacement for `tests.contracts.shoal_command.tiny`."""
