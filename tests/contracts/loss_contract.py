"""What every loss keeps, a user's own included: run each of `CHECKS` on ``(logits_BK, labels_B) -> loss_B``.

A check raises `AssertionError` where the loss breaks it. `test_losses.py` runs them on every entry
of `LOSSES` with its options at their defaults and at the ends of their ranges.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from objectives.base import Scalar
from objectives.registry import Option

Loss = Callable[[Tensor, Tensor], Tensor]
Check = Callable[[Loss], None]

SHAPES = ((1, 2), (7, 3), (16, 10))
"""(B, K), from the smallest that there is."""


def variants(options: Mapping[str, Option]) -> Iterator[dict[str, Scalar]]:
    """Option values to try: all left out, then each alone at both ends of its range."""
    yield {}
    for option in options.values():
        for end, is_open, inside in (
            (option.low, option.low_open, 1.0),
            (option.high, option.high_open, -1.0),
        ):
            if end is not None:
                yield {option.name: end + inside * 1e-3 if is_open else float(end)}
        if option.kind == "float" and option.low == 0:
            yield {option.name: 0.5}


def batch(images: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Scores and labels, the same ones every time."""
    generator = torch.Generator().manual_seed(images * 1000 + classes)
    logits_BK = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return logits_BK.to(dtype), torch.randint(classes, (images,), generator=generator)


def check_gives_one_finite_loss_per_image(loss: Loss) -> None:
    for dtype in (torch.float32, torch.float64):
        for images, classes in SHAPES:
            loss_B = loss(*batch(images, classes, dtype))
            assert loss_B.shape == (images,), f"{tuple(loss_B.shape)} for {images} images"
            assert loss_B.dtype == dtype, f"{loss_B.dtype} for logits of {dtype}"
            assert loss_B.isfinite().all()


def check_images_do_not_mix(loss: Loss) -> None:
    logits_BK, labels_B = batch(7, 5)
    alone = [loss(logits_BK[i : i + 1], labels_B[i : i + 1])[0] for i in range(7)]
    torch.testing.assert_close(loss(logits_BK, labels_B), torch.stack(alone))


def check_is_pure(loss: Loss) -> None:
    logits_BK, labels_B = batch(7, 5)
    logits_before, labels_before = logits_BK.clone(), labels_B.clone()
    chance_before = torch.get_rng_state()
    first, second = loss(logits_BK, labels_B), loss(logits_BK, labels_B)
    assert torch.equal(first, second)
    assert torch.equal(logits_BK, logits_before), "changed the logits in place"
    assert torch.equal(labels_B, labels_before), "changed the labels in place"
    assert torch.equal(torch.get_rng_state(), chance_before), "drew random numbers"


def check_gradient_is_right(loss: Loss) -> None:
    for images, classes in SHAPES:
        logits_BK, labels_B = batch(images, classes)
        logits_BK.requires_grad_()
        assert torch.autograd.gradcheck(lambda z, y=labels_B: loss(z, y), (logits_BK,))


def check_forward_mode_agrees(loss: Loss) -> None:
    logits_BK, labels_B = batch(7, 5)
    with warnings.catch_warnings():
        # PyTorch scripts its own decompositions at the first use of forward mode, and warns of itself.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        forward = torch.func.jacfwd(lambda z: loss(z, labels_B))(logits_BK)
    reverse = torch.func.jacrev(lambda z: loss(z, labels_B))(logits_BK)
    torch.testing.assert_close(forward, reverse)


def check_vmap_equals_loop(loss: Loss) -> None:
    """Over a stack of trials T, values and gradients."""
    trials = [batch(7, 5)] + [(batch(7, 5)[0] * scale, batch(7, 5)[1].flip(0)) for scale in (0.1, 3.0)]
    logits_TBK = torch.stack([logits for logits, _ in trials])
    labels_TB = torch.stack([labels for _, labels in trials])

    def mean(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return loss(logits_BK, labels_B).mean()

    for function in (loss, torch.func.grad(mean)):
        looped = torch.stack([function(z, y) for z, y in zip(logits_TBK, labels_TB, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(logits_TBK, labels_TB), looped)


def check_large_scores_stay_finite(loss: Loss) -> None:
    """Right, wrong and tied, where a naive exp or log would overflow; also where p rounds to 0 or 1."""
    labels_B = torch.zeros(5, dtype=torch.long)
    patterns_BK = torch.tensor([[1.0, 0, 0], [-1, 1, 0], [0, 1, 1], [1, 1, 1], [-1, -1, -1]])
    for scale in (20.0, 100.0, 1e4, 1e6):
        logits_BK = (patterns_BK * scale).requires_grad_()
        loss_B = loss(logits_BK, labels_B)
        (gradient_BK,) = torch.autograd.grad(loss_B.sum(), logits_BK)
        assert loss_B.isfinite().all(), f"loss {loss_B} at scores of {scale:g}"
        assert gradient_BK.isfinite().all(), f"gradient {gradient_BK} at scores of {scale:g}"


def check_a_step_helps(loss: Loss) -> None:
    """From equal scores, going downhill lifts each image's own class above all others and lowers the loss."""
    labels_B = torch.arange(5)
    logits_BK = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    before_B = loss(logits_BK, labels_B)
    (gradient_BK,) = torch.autograd.grad(before_B.sum(), logits_BK)
    stepped_BK = logits_BK.detach() - 1e-3 * gradient_BK
    assert torch.equal(stepped_BK.argmax(dim=-1), labels_B)
    assert (loss(stepped_BK, labels_B) < before_B).all()


CHECKS: tuple[Check, ...] = (
    check_gives_one_finite_loss_per_image,
    check_images_do_not_mix,
    check_is_pure,
    check_gradient_is_right,
    check_forward_mode_agrees,
    check_vmap_equals_loop,
    check_large_scores_stay_finite,
    check_a_step_helps,
)
