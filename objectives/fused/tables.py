"""What a recorded step reads: tensors that stay where they are, written before each replay.

Shapes: T slots, R rows, M images of a row, S slots of a table, A images there are, C channels, K classes, L
dropout layers, H numbers of an optimizer's step, N = R·M images of a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from objectives.devices import sent_to
from objectives.fused.member import Member


class TrialTables:
    """What a step needs to know of the trial in each slot; the idle slot's is harmless."""

    def __init__(
        self,
        order_TA: Tensor,
        labels_A: Tensor,
        *,
        channels: int,
        classes: int,
        dropouts: int,
        dtype: torch.dtype,
    ) -> None:
        device, slots = order_TA.device, len(order_TA) - 1
        self.order_TA = order_TA
        """The images of each trial's epoch, in its order; zeros to begin with."""
        self.mean_TC = torch.zeros((slots + 1, channels), device=device)
        self.std_TC = torch.ones((slots + 1, channels), device=device)
        self.class_weights_TK = torch.ones((slots + 1, classes), device=device)
        self.loss_T = torch.full((slots + 1,), -1, device=device)
        """Place of its loss among `losses`."""
        self.losses: dict[str, dict[str, Tensor]] = {}
        """Name → option → T, in the order in which trials brought them."""
        self.key_T2 = torch.zeros((slots + 1, 2), dtype=torch.long, device=device)
        """What all chance of each trial's epoch comes from, see `objectives.chance`."""
        self.amounts: dict[str, Tensor] = {}
        """Augmentation → T, float64; those that trials have brought."""
        self.shares_TL = torch.zeros((slots + 1, dropouts), dtype=torch.float64, device=device)
        """Of each dropout layer."""
        self.drops = False
        """Whether a trial has been here that drops anything."""
        self.labels_A = labels_A
        self._dtype = dtype

    def admit(self, member: Member, name: str, options: Mapping[str, float]) -> None:
        """A trial comes into its slot; `options` are all that its loss `name` has."""
        slot, data = member.slot, member.data
        self.mean_TC[slot].copy_(data.mean)
        self.std_TC[slot].copy_(data.std)
        weights_K = member.loss.class_weights
        if weights_K is None:
            self.class_weights_TK[slot].fill_(1.0)
        else:
            self.class_weights_TK[slot].copy_(weights_K)
        if name not in self.losses:
            blank_T = torch.zeros(len(self.loss_T), dtype=self._dtype, device=self.loss_T.device)
            self.losses[name] = {option: blank_T.clone() for option in options}
        self.loss_T[slot].fill_(list(self.losses).index(name))
        for option, value in options.items():
            self.losses[name][option][slot].fill_(value)
        self._admit_chance(member)

    def _admit_chance(self, member: Member) -> None:
        slot, amounts = member.slot, {name: float(a) for name, a in member.config.augment.items() if a}
        for name in amounts.keys() - self.amounts.keys():
            self.amounts[name] = torch.zeros(len(self.key_T2), dtype=torch.float64, device=self.key_T2.device)
        for name, amount_T in self.amounts.items():
            amount_T[slot].fill_(amounts.get(name, 0.0))
        for layer, share in enumerate(member.feed.dropping.shares):
            self.shares_TL[slot, layer].fill_(share)
            self.drops = self.drops or share > 0

    @property
    def kinds(self) -> tuple[object, ...]:
        """What steps have to be able to do for the trials that have been here: it only grows."""
        return len(self.losses), len(self.amounts), self.drops

    def begin(self, member: Member) -> None:
        """A trial starts an epoch."""
        order = member.feed.order
        self.order_TA[member.slot, : len(order)].copy_(order)
        sent_to(self.key_T2[member.slot], torch.tensor(member.feed.chance.key))
