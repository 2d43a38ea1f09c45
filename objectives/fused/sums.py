"""Losses and gradient norms of trials' steps, added up on the device until the host needs them.

Shapes: T slots, S of them that have taken a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from objectives.devices import Arriving
from objectives.fused.cursors import Cursors
from objectives.fused.member import Member
from objectives.fused.rows import Whole
from objectives.training import STEPS_BETWEEN_CHECKS

LOSS, NORM = 0, 1
"""Columns of `DeviceSums.sums_T2`."""


class DeviceSums:
    """The sums of the epoch that each slot's trial is in.

    Whether a trial has diverged is looked at without waiting for the device: every so many steps a copy of
    the sums is asked for, and read when the next one is. So a diverged trial trains on for a while.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.sums_T2 = torch.zeros((slots + 1, 2), dtype=torch.float64, device=device)
        """Each step's mean loss times its images, and its gradient's norm. The idle slot's stay zero."""
        self._steps = 0
        self._asked: tuple[Arriving, Whole] | None = None
        """The losses of some moment, on their way to the host, and `Cursors.run_T` then."""

    def begin(self, slot: int) -> None:
        """A trial starts an epoch."""
        self.sums_T2[slot].zero_()

    def add(self, slots_S: Tensor, losses_S: Tensor, norms_S: Tensor, images_S: Tensor) -> None:
        """A step of so many images each. A slot may occur once, but for the idle one, whose numbers are 0."""
        found_S2 = torch.stack([losses_S.double() * images_S, norms_S.double()], dim=1)
        self.sums_T2.index_copy_(0, slots_S, self.sums_T2.index_select(0, slots_S) + found_S2)

    def glance(self, cursors: Cursors) -> None:
        """Once per step: every so often, say in `Cursors.finite_T` who had diverged by the last time."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN_CHECKS:
            return
        if self._asked is not None:
            losses, run_T = self._asked
            cursors.seen(np.isfinite(losses.here().numpy()[:-1]), run_T)
        self._asked = Arriving(self.sums_T2[:, LOSS]), cursors.run_T.copy()

    def read(self, members: Sequence[Member]) -> None:
        """Bring trials' sums to the host, waiting for all steps so far."""
        if not members:
            return
        sums = self.sums_T2.tolist()
        for member in members:
            member.sums.loss, member.sums.norm = sums[member.slot][LOSS], sums[member.slot][NORM]
            member.sums.finite = math.isfinite(member.sums.loss)
