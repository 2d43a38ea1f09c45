"""Validates the trials that are at the end of an epoch, all at once.

Shapes: M images of a row, N validation images of a trial, K classes, A all images there are, C channels, H, W
height and width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from objectives.base import derive_seed
from objectives.devices import seeded
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.recorded_scores import RecordedScores
from objectives.fused.rows import Share, Wants, pack, table
from objectives.fused.staging import Taken, stage_images
from objectives.metrics import evaluated
from objectives.training import Scores


@dataclass(frozen=True, slots=True)
class Scored:
    """A trial's results; None: it diverged in training."""

    member: Member
    scores: Scores | None
    seconds: float
    """Its share of the time that this took."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial of which a part that is its own raised; the others are untouched."""

    member: Member
    error: Exception


def score_rows(
    program: Program,
    images_ACHW: Tensor,
    members: Sequence[Member],
    capacity: int,
    per_row: int,
    *,
    recorded: RecordedScores | None = None,
) -> dict[int, tuple[Tensor, float]]:
    """Slot → logits_NK of the trial on its validation images, and its share of the seconds.

    Pass by pass as `recorded` work, if there is some, which knows all of the members. Raises what it raises.
    The device is waited for once, when all passes are done: else their time would be that of the trial which
    asks for its scores first.
    """
    started = time.perf_counter()
    logits: dict[int, list[Tensor]] = {member.slot: [] for member in members}
    used = dict.fromkeys(logits, 0)
    done = dict.fromkeys(logits, 0)
    by_slot = {member.slot: member for member in members}
    while True:
        left = {slot: len(one.data.validation_indices) - done[slot] for slot, one in by_slot.items()}
        slots = np.array([slot for slot, images in left.items() if images], dtype=np.int64)
        if not len(slots):
            found = {slot: torch.cat(parts) for slot, parts in logits.items()}
            if program.device.type == "cuda":
                torch.cuda.synchronize(program.device)
            per_used = (time.perf_counter() - started) / max(1, sum(used.values()))
            return {slot: (values, per_used * used[slot]) for slot, values in found.items()}
        wants = Wants(
            slots, np.array([left[slot] for slot in slots.tolist()]), np.zeros(len(slots), np.bool_)
        )
        rows = table(pack(wants, capacity, per_row), capacity, per_row, program.state.idle, program.device)
        if recorded is not None:
            logits_NK = recorded.logits(rows, done)
        else:
            taken = [_taken(by_slot[share.slot], share, done[share.slot]) for share in rows.shares]
            images_MHWRC = stage_images(images_ACHW, rows, taken, program.dtype)
            logits_NK = program.forward(rows, images_MHWRC, (), training=False).logits.flatten(0, 1)
        for share in rows.shares:
            logits[share.slot].append(logits_NK[rows.place(share)])
            done[share.slot] += share.images
            used[share.slot] += share.rows


def _taken(member: Member, share: Share, start: int) -> Taken:
    """The validation images of a share, the first of which has the place `start` among all."""
    data = member.data
    return Taken(share, data.validation_indices[start : start + share.images], data.mean, data.std)


def scores_of_member(member: Member, logits_NK: Tensor, seconds: float) -> Scored | Failed:
    """A trial's loss and metrics, given the scores of its validation images."""
    started = time.perf_counter()
    labels_N = member.data.labels[member.data.validation_indices]
    chance = derive_seed(member.start.seed, "score", member.epoch + 1)
    try:
        with torch.inference_mode(), seeded(chance, logits_NK.device):
            # Before the loss, for a user's own may change the scores that it is given.
            metrics, finite = evaluated(logits_NK, labels_N)
            loss_N = member.loss.function(logits_NK, labels_N)
            if member.loss.class_weights is not None:
                loss_N = loss_N * member.loss.class_weights[labels_N]
            loss = loss_N.mean().item()
            scores = Scores(loss, metrics, finite)
    except Exception as error:  # noqa: BLE001 (a user's loss may raise anything)
        return Failed(member, error)
    return Scored(member, scores, seconds + time.perf_counter() - started)
