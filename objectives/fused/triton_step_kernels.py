"""The kernels of `triton_steps.py`, in Triton's language; imported only where there is Triton.

Shapes: T slots, R rows, M images of a row, S slots of a table, K classes, P parameters of a trial, W of them
weights, X numbers of a parameter, B blocks of a trial's parameters.

Each does for all trials what would be dozens of operations, every one of which reads and writes all of its
numbers: here they are read once. Numbers of two slots meet nowhere, and a program of the grid adds up in one
order. The idle slot, and rows of it, are passed over. Arguments in capitals are fixed when a kernel is
compiled; the others are not looked at, so that trials that come and go compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""As in `triton_kernels.py`."""


def _add_rows(  # noqa: PLR0917 (a kernel's arguments are positional)
    sums: tl.tensor,
    found: tl.tensor,
    slots: tl.tensor,
    firsts: tl.tensor,
    counts: tl.tensor,
    fresh: tl.tensor,
    idle: tl.tensor,
    stride: tl.tensor,
    numbers: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """sums_TX, with a `stride` from slot to slot, become those with found_RX: `counts`_R of them from the row
    `firsts`_S on, one after the other; of `fresh` slots as if they had been 0. The grid: blocks of X, S.
    """
    entry = tl.program_id(1)
    slot, first = tl.load(slots + entry), tl.load(firsts + entry)
    if slot != idle:
        number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        here = number < numbers
        row = found + first * numbers + number
        total = tl.load(row, mask=here, other=0.0).to(tl.float32)
        into = sums + slot * stride + number
        if tl.load(fresh + entry) == 0:
            total = tl.load(into, mask=here, other=0.0) + total
        for _ in range(1, tl.load(counts + first)):
            row += numbers
            total += tl.load(row, mask=here, other=0.0).to(tl.float32)
        tl.store(into, total, mask=here)


def _update(  # noqa: PLR0915, PLR0917 (a kernel is one function; its arguments are positional)
    weights: tl.tensor,
    gradient: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    partial: tl.tensor,
    slots: tl.tensor,
    hyper: tl.tensor,
    hyper_stride: tl.tensor,
    idle: tl.tensor,
    size: tl.tensor,
    decayed: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A step of an optimizer's kind, a place among `triton_steps.KINDS`, for rows of weights_TP, first_TP and
    second_TP, with the penalty's gradient added; `hyper` are the numbers of steps, × S.

    partial_SB3: of each block, the sums of the squares of the gradient, of |w| and of w² of weights. The
    grid: blocks of P, S.
    """
    entry = tl.program_id(1)
    slot = tl.load(slots + entry)
    if slot != idle:
        number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        here = number < size
        penalised = number < decayed
        at = slot * size + number
        h = hyper + entry
        l1, l2 = tl.load(h).to(tl.float32), tl.load(h + hyper_stride).to(tl.float32)
        shrink = tl.load(h + 2 * hyper_stride).to(tl.float32)
        h += 3 * hyper_stride
        w, g = tl.load(weights + at, mask=here, other=0.0), tl.load(gradient + at, mask=here, other=0.0)
        sign = tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, w))
        g += tl.where(penalised, tl.where(l1 > 0, sign * l1, 0.0), 0.0)
        g += tl.where(penalised, tl.where(l2 > 0, w * l2, 0.0), 0.0)
        of_weights = tl.where(penalised, w, 0.0)
        sums = partial + (entry * tl.num_programs(0) + tl.program_id(0)) * 3
        tl.store(sums, tl.sum(g * g, 0))
        tl.store(sums + 1, tl.sum(tl.abs(of_weights), 0))
        tl.store(sums + 2, tl.sum(of_weights * of_weights, 0))
        w = tl.where(penalised, w * shrink, w)
        a = tl.load(h).to(tl.float32)
        if KIND == 0:  # plain
            w -= g * a
        elif KIND <= 2:  # momentum, and Nesterov's
            mu = tl.load(h + hyper_stride).to(tl.float32)
            m = tl.load(first + at, mask=here, other=0.0) * mu + g
            tl.store(first + at, m, mask=here)
            w -= (m if KIND == 1 else m * mu + g) * a
        elif KIND == 3:  # Adagrad
            epsilon = tl.load(h + hyper_stride).to(tl.float32)
            v = tl.load(second + at, mask=here, other=0.0) + g * g
            tl.store(second + at, v, mask=here)
            w -= tl.div_rn(g * a, tl.sqrt_rn(v) + epsilon)
        elif KIND == 4:  # RMSprop
            kept, new = (
                tl.load(h + hyper_stride).to(tl.float32),
                tl.load(h + 2 * hyper_stride).to(tl.float32),
            )
            epsilon = tl.load(h + 3 * hyper_stride).to(tl.float32)
            v = tl.load(second + at, mask=here, other=0.0) * kept + g * (g * new)
            tl.store(second + at, v, mask=here)
            w -= tl.div_rn(g * a, tl.sqrt_rn(v) + epsilon)
        else:  # Adam, and AdamW, which has its own decay first
            if KIND == 6:
                w = tl.where(penalised, w * a, w)
                h += hyper_stride
                a = tl.load(h).to(tl.float32)
            new1, kept2 = (
                tl.load(h + hyper_stride).to(tl.float32),
                tl.load(h + 2 * hyper_stride).to(tl.float32),
            )
            new2, root = (
                tl.load(h + 3 * hyper_stride).to(tl.float32),
                tl.load(h + 4 * hyper_stride).to(tl.float32),
            )
            epsilon = tl.load(h + 5 * hyper_stride).to(tl.float32)
            m = tl.load(first + at, mask=here, other=0.0)
            m = tl.where(new1 < 0.5, m + new1 * (g - m), g - (g - m) * (1 - new1))
            tl.store(first + at, m, mask=here)
            v = tl.load(second + at, mask=here, other=0.0) * kept2 + g * (g * new2)
            tl.store(second + at, v, mask=here)
            w -= tl.div_rn(m * a, tl.div_rn(tl.sqrt_rn(v), root) + epsilon)
        tl.store(weights + at, w, mask=here)


def _end_update(  # noqa: PLR0917 (a kernel's arguments are positional)
    partial: tl.tensor,
    loss: tl.tensor,
    totals: tl.tensor,
    slots: tl.tensor,
    batches: tl.tensor,
    hyper: tl.tensor,
    hyper_stride: tl.tensor,
    idle: tl.tensor,
    blocks: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    """What a step leaves of it: totals_T2 (float64) have its loss, with the penalty, times the images of its
    batch, and its gradient's norm added; loss_T becomes 0. The grid: S.
    """
    entry = tl.program_id(0)
    slot = tl.load(slots + entry)
    if slot != idle:
        block = tl.arange(0, BLOCKS)
        here = block < blocks
        at = partial + (entry * blocks + block) * 3
        squares = tl.sum(tl.load(at, mask=here, other=0.0), 0)
        absolute = tl.sum(tl.load(at + 1, mask=here, other=0.0), 0)
        squared = tl.sum(tl.load(at + 2, mask=here, other=0.0), 0)
        l1 = tl.load(hyper + entry).to(tl.float32)
        l2 = tl.load(hyper + hyper_stride + entry).to(tl.float32)
        penalty = tl.where(l1 > 0, l1 * absolute, 0.0) + tl.where(l2 > 0, l2 / 2 * squared, 0.0)
        mean = (tl.load(loss + slot) + penalty).to(tl.float64)
        images = tl.load(batches + entry).to(tl.float64)
        tl.store(totals + 2 * slot, tl.load(totals + 2 * slot) + mean * images)
        norm = tl.sqrt_rn(squares).to(tl.float64)
        tl.store(totals + 2 * slot + 1, tl.load(totals + 2 * slot + 1) + norm)
        tl.store(loss + slot, 0.0)


def _losses(  # noqa: PLR0915, PLR0917 (a kernel is one function; its arguments are positional)
    logits: tl.tensor,
    labels: tl.tensor,
    indices: tl.tensor,
    slots: tl.tensor,
    counts: tl.tensor,
    batches: tl.tensor,
    class_weights: tl.tensor,
    kinds: tl.tensor,
    places: tl.tensor,
    smoothing: tl.tensor,
    focus: tl.tensor,
    dlogits: tl.tensor,
    lost: tl.tensor,
    per_row: tl.tensor,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """logits_RMK → dlogits_RMK and lost_R: of each image that counts the gradient of its trial's loss, and of
    each row what it adds to that loss. `kinds`_T is a trial's place among those in use, and `places` which of
    `triton_steps.LOSSES_BY_TRITON` that is. The grid: rows.
    """
    row = tl.program_id(0)
    slot, count = tl.load(slots + row), tl.load(counts + row)
    used = tl.load(kinds + slot)
    kind = tl.load(places + tl.maximum(used, 0))
    image, label_of = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)[None, :]
    inside = image < per_row
    counting = inside & (image < count) & (used >= 0)
    real = label_of < K
    at = (row * per_row + image).to(tl.int64)[:, None] * K + label_of
    z = tl.load(logits + at, mask=inside[:, None] & real, other=0.0)
    index = tl.load(indices + row * per_row + image, mask=inside, other=0)
    label = tl.load(labels + index, mask=inside, other=0)
    weight = tl.load(class_weights + slot * K + label, mask=inside, other=0.0)
    weight = tl.div_rn(weight, tl.load(batches + row).to(tl.float32))
    own = label[:, None] == label_of
    y = tl.where(own, 1.0, 0.0)
    sign = 2 * y - 1
    if (kind == 0) | (kind == 7):  # cross-entropy, focal
        shifted = z - tl.max(tl.where(real, z, float("-inf")), 1)[:, None]
        log_p = shifted - tl.log(tl.sum(tl.where(real, tl.exp(shifted), 0.0), 1))[:, None]
        p, log_own = tl.exp(log_p), tl.sum(tl.where(own, log_p, 0.0), 1)
        if kind == 0:
            epsilon = tl.load(smoothing + slot)
            all_p = tl.sum(tl.where(real, log_p, 0.0), 1)
            loss = -(1 - epsilon) * log_own - epsilon * (all_p / K)
            slope = p - (1 - epsilon) * y - epsilon / K
        else:
            gamma = tl.load(focus + slot)
            rest = tl.where(real & ~own, log_p, float("-inf"))
            most = tl.max(rest, 1)
            log_rest = most + tl.log(tl.sum(tl.exp(rest - most[:, None]), 1))
            part = tl.exp(gamma * log_rest)
            loss = -part * log_own
            of_rest = tl.exp(rest - log_rest[:, None]) - p
            slope = -part[:, None] * (y - p + gamma * log_own[:, None] * of_rest)
    elif (kind == 5) | (kind == 6):  # both multi-class hinges
        violation = 1 - y + z - tl.sum(tl.where(own, z, 0.0), 1)[:, None]
        violation = tl.where(real & ~(violation <= 0), violation, 0.0)
        each = violation if kind == 5 else violation * violation
        slope = tl.where(real & ~(violation <= 0), 1.0, 0.0)
        if kind == 6:
            slope = 2 * violation
        loss = tl.sum(violation if kind == 5 else violation * violation, 1)
        slope = tl.where(own, slope - tl.sum(slope, 1)[:, None], slope)
    else:
        if kind == 1:  # binary cross-entropy
            x = sign * z
            flat = tl.exp(-tl.abs(x))
            each = tl.log(1 + flat) - tl.where(x > 0, 0.0, x)
            slope = -sign * tl.where(x > 0, flat, 1.0) / (1 + flat)
        elif kind == 4:  # hinge
            margin = 1 - sign * z
            each = tl.where(margin <= 0, 0.0, margin)
            slope = tl.where(margin <= 0, 0.0, -sign)
        else:  # squared and absolute error
            off = z - y
            each = off * off if kind == 2 else tl.abs(off)
            slope = 2 * off if kind == 2 else tl.where(off > 0, 1.0, tl.where(off < 0, -1.0, off))
        loss = tl.sum(tl.where(real, each, 0.0), 1) / K
        slope = slope / K
    slope = tl.where(counting[:, None], slope * weight[:, None], 0.0)
    tl.store(dlogits + at, slope, mask=inside[:, None] & real)
    tl.store(lost + row, tl.sum(tl.where(counting, loss * weight, 0.0), 0))


POINTERS = (
    ("sums", "found", "slots", "firsts", "counts", "fresh"),
    ("weights", "gradient", "first", "second", "partial", "slots", "hyper"),
    ("partial", "loss", "totals", "slots", "batches", "hyper"),
    (
        *("logits", "labels", "indices", "slots", "counts", "batches", "class_weights", "kinds", "places"),
        *("smoothing", "focus", "dlogits", "lost"),
    ),
)
"""Arguments of each that may begin anywhere: where one begins at a multiple of 16 bytes is all the same to a
kernel, since rows of P numbers begin anywhere, and it is compiled but once."""


def _once(kernel: Callable[..., None], numbers: Sequence[str], pointers: Sequence[str]) -> Any:
    return triton.jit(kernel, do_not_specialize=numbers, do_not_specialize_on_alignment=pointers)


add_rows = _once(_add_rows, ("idle", "stride", "numbers"), POINTERS[0])
update = _once(_update, ("hyper_stride", "idle", "size", "decayed"), POINTERS[1])
end_update = _once(_end_update, ("hyper_stride", "idle", "blocks"), POINTERS[2])
losses = _once(_losses, ("per_row",), POINTERS[3])
