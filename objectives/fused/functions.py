"""Calls of autograd functions of our own, whose `apply` torch gives no type: the one place that says it."""

from __future__ import annotations

import torch
from torch import Tensor


def applied(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """The tensor that a function with one result gives, differentiable by the function's `backward`."""
    result: Tensor = function.apply(*arguments)
    return result
