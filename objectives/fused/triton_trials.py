"""What kernels of recorded steps are tried on: made-up steps of a few trials, of all kinds.

Shapes: T slots, R rows, M images of a row, S slots of a table, K classes, X numbers of a parameter, P
parameters of a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives.augment import purpose
from objectives.base import Choice
from objectives.chance import Numbers
from objectives.devices import generator, moved
from objectives.fused.inbox import OF_SLOTS, UpdateTable
from objectives.fused.member import PENALTY_NUMBERS
from objectives.fused.state import add_rows
from objectives.fused.step_operations import (
    images_by_operations,
    losses_by_operations,
    places_by_operations,
    step_by_operations,
)
from objectives.fused.sums import DeviceSums
from objectives.fused.tables import TrialTables
from objectives.fused.triton_images import MOVED, SHOWS, images_by_triton, places_by_triton
from objectives.fused.triton_steps import (
    ADDS,
    LOSES,
    LOSSES_BY_TRITON,
    UPDATES_SLOTS,
    add_rows_by_triton,
    losses_by_triton,
    places_of,
    update_by_triton,
)
from objectives.fused.triton_tried import Trial
from objectives.fused.update import UPDATES, Rows, Update, optimizer_options

SLOTS = 5
"""T, but for the idle one."""

CLOSE = 1e-5
"""Where numbers are added in another order, or rounded once less."""


class _Made:
    """Numbers for a device, the same ones every time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._chance = generator(0, torch.device("cpu"))

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._chance).to(self.device)

    def below(self, bound: int, *shape: int) -> Tensor:
        return torch.randint(bound, shape, generator=self._chance).to(self.device)

    def whole(self, *numbers: int) -> Tensor:
        return moved(torch.tensor(numbers), self.device)


def _sums(device: torch.device) -> list[Trial]:
    """Trials of three, one and two rows in a step of eight, of which one is a batch's first."""
    made = _Made(device)
    counts_R = made.whole(3, 3, 3, 1, 2, 2, 1, 1)
    slots = ((4, 0, 2, SLOTS, SLOTS, SLOTS, SLOTS, SLOTS), (4, 2, SLOTS, SLOTS), (4, SLOTS))
    firsts = ((0, 3, 4, 0, 0, 0, 0, 0), (1, 5, 0, 0), (2, 0))
    turns = [(made.whole(*of), made.whole(*rows)) for of, rows in zip(slots, firsts, strict=True)]
    fresh_S = made.whole(0, 1, 0, 0, 0, 0, 0, 0) > 0
    found = []
    full, half = torch.float32, torch.bfloat16
    for numbers, dtype in ((3000, full), (7, full), (1, full), (40, half)):
        sums_TP, rows_RX = made.numbers(SLOTS + 1, numbers + 5), made.numbers(8, numbers).to(dtype)
        sums_TP[SLOTS] = 0

        by_kernel = partial(_added, sums_TP, rows_RX, turns, fresh_S, counts_R)
        found.append(Trial(by_kernel, partial(_added, sums_TP, rows_RX.float(), turns, fresh_S, None), 0.0))
    return found


def _added(
    sums_TP: Tensor,
    rows_RX: Tensor,
    turns: Sequence[tuple[Tensor, Tensor]],
    fresh_S: Tensor,
    counts_R: Tensor | None,
) -> list[Tensor]:
    """Of a copy, from the third number on; by the kernel if there are counts."""
    copied_TP = sums_TP.clone()
    into_TX = copied_TP.narrow(1, 2, rows_RX.shape[1])
    if counts_R is None:
        add_rows(into_TX, rows_RX, turns, fresh_S)
    else:
        add_rows_by_triton(into_TX, rows_RX, turns[0], counts_R, fresh_S)
    return [copied_TP]


def _updates(device: torch.device) -> list[Trial]:
    """Three of the slots, with L1, with L2 and with a decay, by each kind of optimizer."""
    made, size = _Made(device), 2500
    weights_TP = made.numbers(SLOTS + 1, size)
    weights_TP[:, 5] = 0.0
    stack = Rows(weights_TP, *(made.numbers(SLOTS + 1, size) for _ in range(3)))
    stack.second.abs_()
    for each in (stack.weights, stack.gradient, stack.first, stack.second):
        each[SLOTS] = 0.0
    return [_update(made, stack, UPDATES[name], name) for name in UPDATES if name != "gradient_descent"]


def _update(made: _Made, stack: Rows, update: Update, name: str) -> Trial:
    options = optimizer_options(Choice(name))
    rates, steps = np.array([0.1, 0.01, 0.003, 1.0]), np.array([1.0, 2.0, 30.0, 1.0])
    numbers = np.ones((PENALTY_NUMBERS + update.hyper, 4))
    numbers[:PENALTY_NUMBERS] = [[0.01, 0, 0, 0], [0, 0.02, 0.001, 0], [1, 1, 0.9, 1]]
    for place, number in enumerate(update.numbers(options, rates, steps)):
        numbers[PENALTY_NUMBERS + place] = number
    there = torch.zeros((OF_SLOTS + len(numbers), 6), dtype=torch.long)
    there[0, :4], there[1, :4] = torch.tensor([3, 0, 4, SLOTS]), torch.tensor([32, 64, 7, 0])
    there[OF_SLOTS:, :4] = torch.from_numpy(numbers).view(torch.long)
    table = UpdateTable(4, update.hyper, torch.float32, moved(there, made.device))
    loss_T = made.numbers(SLOTS + 1)
    loss_T[SLOTS] = 0.0

    def done(by: Callable[[Rows, Tensor, DeviceSums], None]) -> list[Tensor]:
        copied = Rows(*(each.clone() for each in (stack.weights, stack.gradient, stack.first, stack.second)))
        sums, lost_T = DeviceSums(SLOTS, made.device), loss_T.clone()
        by(copied, lost_T, sums)
        return [copied.weights, copied.first, copied.second, lost_T, *sums.sums_T2.unbind(1)]

    def by_kernel(rows: Rows, lost_T: Tensor, sums: DeviceSums) -> None:
        update_by_triton(update, rows, table, 2000, lost_T, sums.sums_T2)

    def by_operations(rows: Rows, lost_T: Tensor, sums: DeviceSums) -> None:
        step_by_operations(update, rows, table, 2000, lost_T, sums)

    return Trial(lambda: done(by_kernel), lambda: done(by_operations), CLOSE)


def _losses(device: torch.device) -> list[Trial]:
    """A row of each loss, one that is partly used, and an idle one; scores from tiny to very large."""
    made, names = _Made(device), list(LOSSES_BY_TRITON)
    found = []
    for classes, images in ((10, 32), (7, 5), (2, 16)):
        slots = len(names)
        slots_R = made.whole(*range(slots), 0, slots)
        counts_R = made.whole(*[images] * slots, images - 2, 0)
        batches_R = made.whole(*range(images, images + slots), images, 1)
        logits_RMK = made.numbers(slots + 2, images, classes)
        logits_RMK[:, 1] *= 30.0
        logits_RMK[:, 2] = 0.0
        labels_A, index_N = made.below(classes, 50), made.below(50, (slots + 2) * images)
        weights_TK = made.numbers(slots + 1, classes).abs()
        order = [*names[3:], *names[:3]]
        loss_T = made.whole(*[order.index(name) for name in names], -1)
        options = {"cross_entropy": "label_smoothing", "focal": "gamma"}
        losses: Mapping[str, Mapping[str, Tensor]] = {
            name: {options[name]: torch.full((slots + 1,), 0.3, device=device)} if name in options else {}
            for name in order
        }
        of_rows = slots_R, counts_R, batches_R
        given = logits_RMK, labels_A, index_N, of_rows, weights_TK, loss_T
        by_kernel = partial(losses_by_triton, *given, moved(places_of(order), device), losses)
        by_operations = partial(losses_by_operations, *given, losses)
        found.append(Trial(partial(_each_row, by_kernel), partial(_each_row, by_operations), CLOSE))
    return found


def _each_row(by: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Every row is held against its own largest number."""
    dlogits_RMK, lost_R = by()
    return [*dlogits_RMK.unbind(0), *lost_R.unbind(0)]


def _images(device: torch.device) -> list[Trial]:
    """Steps of four rows, of which one is idle and one not full, plain and with all that moves pixels."""
    made, rows, per_row = _Made(device), 4, 6
    slots_R = made.whole(2, 0, 2, SLOTS)
    of_rows = slots_R, made.whole(per_row, 4, 1, 0), made.whole(0, 7, per_row, 0)
    found = []
    for sides, names, dtype in (
        ((3, 9, 11), MOVED, torch.float32),
        ((1, 8, 8), (), torch.float32),
        ((3, 6, 6), ("crop", "flip"), torch.bfloat16),
    ):
        pictures_ACHW = made.below(256, 40, *sides).to(torch.uint8)
        order_TA = made.below(40, SLOTS + 1, 40).to(torch.int32)
        trials = TrialTables(
            order_TA, made.below(10, 40), channels=sides[0], classes=10, dropouts=0, dtype=torch.float32
        )
        trials.mean_TC.copy_(made.numbers(SLOTS + 1, sides[0]) * 20 + 120)
        trials.std_TC.copy_(made.numbers(SLOTS + 1, sides[0]).abs() + 50)
        for name, amount in {"flip": 0.5, "translation": 0.5, "crop": 3.0, "cutout": 5.0}.items():
            if name in names:
                trials.amounts[name] = torch.full((SLOTS + 1,), amount, dtype=torch.float64, device=device)
                trials.amounts[name][SLOTS] = 0.0
        words = made.below(1 << 32, 4, len(names), rows * per_row)
        numbers = {purpose(name): Numbers(words[:, at]) for at, name in enumerate(names)}
        tolerance = 8e-3 if dtype == torch.bfloat16 else 0.0  # the interpreter rounds towards 0

        def by(places: Any, images: Any, given: tuple[Any, ...]) -> list[Tensor]:
            order_TA, pictures_ACHW, trials, numbers, dtype = given
            slot_N, place_N, index_N = places(order_TA, of_rows, per_row)
            x_MHWRC = images(pictures_ACHW, index_N, slots_R, trials, numbers, dtype)
            return [slot_N, place_N, index_N, x_MHWRC]

        given = order_TA, pictures_ACHW, trials, numbers, dtype
        by_kernel = partial(by, places_by_triton, images_by_triton, given)
        by_operations = partial(by, places_by_operations, images_by_operations, given)
        found.append(Trial(by_kernel, by_operations, tolerance))
    return found


TRIALS: Mapping[str, Callable[[torch.device], Sequence[Trial]]] = {
    ADDS: _sums,
    UPDATES_SLOTS: _updates,
    LOSES: _losses,
    SHOWS: _images,
}
"""Name of a kernel → what it is tried on."""
