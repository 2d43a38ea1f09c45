"""Validates the trials that are at the end of an epoch, all at once.

Shapes: M images of a row, N validation images of a trial, K classes, A all images there are, C channels, H, W
height and width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.base import derive_seed
from objectives.devices import seeded
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.rows import Want, pack, table
from objectives.fused.staging import Taken, stage_images
from objectives.metrics import evaluate
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
    program: Program, images_ACHW: Tensor, members: Sequence[Member], capacity: int, per_row: int
) -> dict[int, tuple[Tensor, float]]:
    """Slot → logits_NK of the trial on its validation images, and its share of the seconds."""
    logits: dict[int, list[Tensor]] = {member.slot: [] for member in members}
    seconds = dict.fromkeys(logits, 0.0)
    done = dict.fromkeys(logits, 0)
    by_slot = {member.slot: member for member in members}
    while True:
        wants = [
            Want(slot, left, whole=False)
            for slot, member in by_slot.items()
            if (left := len(member.data.validation_indices) - done[slot])
        ]
        if not wants:
            return {slot: (torch.cat(parts), seconds[slot]) for slot, parts in logits.items()}
        started = time.perf_counter()
        rows = table(pack(wants, capacity, per_row), capacity, per_row, program.state.idle, program.device)
        taken = []
        for share in rows.shares:
            data = by_slot[share.slot].data
            part = slice(done[share.slot], done[share.slot] + share.images)
            taken.append(Taken(share, data.validation_indices[part], data.mean, data.std))
            done[share.slot] += share.images
        images_MHWRC = stage_images(images_ACHW, rows, taken, program.dtype)
        logits_NK = program.forward(rows, images_MHWRC, (), training=False).logits.flatten(0, 1)
        for share in rows.shares:
            logits[share.slot].append(logits_NK[rows.place(share)])
        spent = (time.perf_counter() - started) / rows.used
        for share in rows.shares:
            seconds[share.slot] += spent * share.rows


def scores_of_member(member: Member, logits_NK: Tensor, seconds: float) -> Scored | Failed:
    """A trial's loss and metrics, given the scores of its validation images."""
    started = time.perf_counter()
    labels_N = member.data.labels[member.data.validation_indices]
    chance = derive_seed(member.start.seed, "score", member.epoch + 1)
    try:
        with torch.inference_mode(), seeded(chance, logits_NK.device):
            # Before the loss, for a user's own may change the scores that it is given.
            metrics, finite = evaluate(logits_NK, labels_N), bool(logits_NK.isfinite().all())
            loss_N = member.loss.function(logits_NK, labels_N)
            if member.loss.class_weights is not None:
                loss_N = loss_N * member.loss.class_weights[labels_N]
            loss = loss_N.mean().item()
            scores = Scores(loss, metrics, finite)
    except Exception as error:  # noqa: BLE001 (a user's loss may raise anything)
        return Failed(member, error)
    return Scored(member, scores, seconds + time.perf_counter() - started)
