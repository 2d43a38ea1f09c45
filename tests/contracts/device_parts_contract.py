"""What a device keeps of the parts that steps are made of: convolutions, random numbers, compiled updates.

Inherit `PartsContract` as `CurvesContract`, see there.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.augment import AUGMENTATIONS, augment, purpose
from objectives.base import Choice, Precision
from objectives.chance import Columns, Epoch, Numbers, Purpose, dropout, elements, kept, numbers, words_of
from objectives.devices import reproducible
from objectives.fused.backends import setting_of
from objectives.fused.convolutions import CONVOLUTIONS, Shape, shapes_of
from objectives.fused.memory import Sizes
from objectives.fused.triton_chance import words_for
from objectives.fused.update import UPDATES, Rows, optimizer_options
from objectives.models import build
from objectives.precision import activations
from tests.contracts.device_curves_contract import DeviceContract
from tests.contracts.parity_contract import CPU, relative
from tests.contracts.trained_devices import TrainedDevice

ROWS, IMAGES = 3, 4

ODD = [
    (nn.Conv2d(2, 7, (2, 3), stride=(2, 3), padding=(0, 2)), (7, 9)),
    (nn.Conv2d(66, 65, 1), (5, 4)),
    (nn.Conv2d(3, 16, 4, stride=3, padding=1, bias=False), (11, 9)),
    (nn.Conv2d(16, 32, 3, stride=2, padding=1), (9, 9)),
    (nn.Conv2d(1, 8, 5, padding=2), (6, 7)),
]
"""Of sizes that no block of a kernel fits, strided, padded, with one channel, without a bias."""

NETWORKS = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
"""What comes to the built-in network."""

OFF_BY: dict[Precision, float] = {"fp32": 3e-5, "tf32": 3e-3, "bf16": 1e-2}
"""By the 2-norm, relative. TF32 alone is 3e-4 and more: fp32 that passes is not computed in it."""

EVERY: dict[Precision, int] = {"fp32": 1, "tf32": 4, "bf16": 2}
"""One of so many shapes is tried: each is compiled by Triton, which takes a second or more."""

AMOUNTS = {"flip": 0.5, "translation": 0.2, "crop": 2, "cutout": 3, "rotation": 20.0}


def shapes() -> list[Shape]:
    """All convolutions that are tried."""
    found = []
    for input_shape in NETWORKS:
        found += shapes_of(build(Choice("cnn"), input_shape, 10, 0), input_shape).values()
    for module, sides in ODD:
        found += shapes_of(nn.Sequential(module), (module.in_channels, *sides)).values()
    return found


class Drawn:
    """What a convolution of some rows and its gradients are computed from: numbers that bfloat16 holds."""

    def __init__(self, shape: Shape) -> None:
        self.module = nn.Conv2d(
            shape.channels,
            shape.out,
            shape.kernel,  # type: ignore[arg-type]
            shape.stride,  # type: ignore[arg-type]
            shape.padding,  # type: ignore[arg-type]
            device="meta",
        )
        chance = torch.Generator().manual_seed(7)

        def drawn(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=chance).bfloat16().double()

        self.x_RMCHW = drawn(ROWS, IMAGES, shape.channels, shape.height, shape.width)
        self.kernel_ROCHW = drawn(ROWS, shape.out, shape.channels, *shape.kernel)
        self.bias_RO = drawn(ROWS, shape.out) if shape.bias else None
        self.dy_RMOHW = drawn(ROWS, *self._plain(0, self.x_RMCHW[0], self.kernel_ROCHW[0]).shape)

    def _plain(self, row: int, x_MCHW: Tensor, kernel_OCHW: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return functional.conv2d(x_MCHW, kernel_OCHW, bias_O, self.module.stride, self.module.padding)

    def exactly(self) -> list[Tensor]:
        """The map out and the gradients of map, kernel and bias, by torch in float64, R… each."""
        found = []
        for row in range(ROWS):
            given = [self.x_RMCHW[row], self.kernel_ROCHW[row]]
            given += [] if self.bias_RO is None else [self.bias_RO[row]]
            leaves = [leaf.clone().requires_grad_() for leaf in given]
            y = self._plain(row, *leaves)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, self.dy_RMOHW[row])])
        return [torch.stack(tensors) for tensors in zip(*found, strict=True)]

    def by(self, backend: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The same by one of `CONVOLUTIONS`."""
        x = _as_map(self.x_RMCHW).to(device, dtype).requires_grad_()
        kernel = self.kernel_ROCHW.permute(0, 1, 3, 4, 2).contiguous().to(device, dtype).requires_grad_()
        bias = None if self.bias_RO is None else self.bias_RO.to(device, dtype).requires_grad_()
        leaves = [leaf for leaf in (x, kernel, bias) if leaf is not None]
        y = CONVOLUTIONS[backend].run(x, kernel, bias, self.module)
        dx, dkernel, *dbias = torch.autograd.grad(y, leaves, _as_map(self.dy_RMOHW).to(device, dtype))
        return [_of_map(y.detach()), _of_map(dx), dkernel.permute(0, 1, 4, 2, 3), *dbias]


class PartsContract(DeviceContract):
    """The suite."""

    @pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
    def test_every_backend_computes_convolutions_and_their_gradients(
        self, on: TrainedDevice, device: torch.device, precision: Precision
    ) -> None:
        """All that the device offers, against torch's own in float64; what fails is told of all at once."""
        dtype = activations(precision)
        setting = setting_of(device, Sizes(2, ROWS, IMAGES), dtype, precision)
        wrong, tried = [], set()
        with reproducible(1, precision):
            for shape in shapes()[:: EVERY[precision]]:
                drawn = Drawn(shape)
                expected = drawn.exactly()
                for name in [each for each in CONVOLUTIONS if CONVOLUTIONS[each].offered(shape, setting)]:
                    tried.add(name)
                    found = _errors(drawn, name, device, dtype, expected)
                    if isinstance(found, str) or not max(found) <= OFF_BY[precision]:
                        wrong.append(f"{name}, {shape}: {found}")
        assert not wrong, "\n".join(wrong)
        assert tried >= on.backends(precision)

    # Random numbers

    def test_words_are_those_of_a_cpu(self, on: TrainedDevice, device: torch.device) -> None:
        """For keys and places with all of their bits, numbers of each image and words of its elements."""
        single: list[Purpose] = [purpose(name) for name in AUGMENTATIONS]
        many = {dropout(0): 70, dropout(1): 3}
        chance = torch.Generator().manual_seed(1)
        places_B = torch.randint(0, 1 << 31, (333,), generator=chance)
        keys_T2 = torch.randint(0, 1 << 32, (5, 2), generator=chance)
        trials_B = torch.randint(0, 5, (333,), generator=chance)
        here = Columns(single, many, device, by=words_for(device))
        found = here.draw(places_B.to(device), keys_T2.to(device), trials_B.to(device))
        first_B, second_B = keys_T2[trials_B].unbind(1)
        for name in single:
            expected = numbers(name, places_B, (first_B, second_B)).words
            assert torch.equal(found.numbers[name].words.cpu(), expected)
        for name, count in many.items():
            expected = elements(name, places_B, (first_B, second_B), count)
            assert torch.equal(found.words[name].cpu(), expected)
        assert (words_for(device) is words_of) == on.exact, "a GPU takes the kernel"

    def test_dropout_masks_are_those_of_a_cpu(self, device: torch.device) -> None:
        """Of a trial alone, ahead and in any order, and of many with each its share."""
        for share in (0.1, 0.5, 0.77):
            here, there = Epoch(3, 2, 500, device), Epoch(3, 2, 500, CPU)
            for first, count in ((0, 16), (16, 48), (400, 100)):
                given = {"first": first, "count": count}
                found, expected = (each.kept(1, share, 33, torch.float32, **given) for each in (here, there))
                assert torch.equal(found.cpu(), expected)
        words_BF = torch.randint(0, 1 << 32, (64, 33), generator=torch.Generator().manual_seed(2))
        shares_B1 = torch.linspace(0, 0.95, 64, dtype=torch.float64)[:, None]
        found = kept(words_BF.to(device), shares_B1.to(device), torch.float32)
        assert torch.equal(found.cpu(), kept(words_BF, shares_B1, torch.float32))

    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_augmented_images_are_those_of_a_cpu(self, device: torch.device, name: str) -> None:
        """To the bit, but for the angles of rotations, whose sine and cosine each device rounds itself."""
        images = torch.randn(96, 3, 9, 8, generator=torch.Generator().manual_seed(1))
        each = torch.linspace(0, 1, 96, dtype=torch.float64) * AMOUNTS[name]
        for amount in (AMOUNTS[name], each):
            found, expected = (
                augment(images.to(where), {name: _moved(amount, where)}, _numbers(where))
                for where in (device, CPU)
            )
            if name == "rotation":
                torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
            else:
                assert torch.equal(found.cpu(), expected)
            assert not torch.equal(expected, images)

    # Compiled updates

    @pytest.mark.usefixtures("compiling")
    @pytest.mark.parametrize("name", UPDATES)
    def test_a_compiled_update_gives_the_numbers_of_its_operations(
        self, on: TrainedDevice, device: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Three steps, of rows in the middle of training, and of the idle one, which stays zero."""
        update, updates, decayed = UPDATES[name], on.compiled(), 12
        chance = torch.Generator().manual_seed(1)
        drawn = [torch.randn((4, 20), generator=chance) for _ in range(4)]
        drawn[3].abs_()
        for tensor in drawn:
            tensor[3].zero_()
        given = [update.numbers(optimizer_options(Choice(name)), 0.01, step) for step in (3, 9, 40, 1)]  # type: ignore[arg-type]
        numbers_HS1 = torch.tensor(given, dtype=torch.float64).float().to(device).T.contiguous()[..., None]
        one_by_one, compiled = (Rows(*(each.to(device, copy=True) for each in drawn)) for _ in range(2))
        set_stance = torch.compiler.set_stance
        for _ in range(3):
            update.apply(one_by_one, decayed, *numbers_HS1)
            updates.step(update, compiled, decayed, numbers_HS1)
            # What would silently run as it is, for it fits nothing that was compiled, fails from here on.
            monkeypatch.setattr(torch.compiler, "set_stance", lambda _: set_stance("fail_on_recompile"))
        assert updates.why_not is None
        assert on.kernels() > 0
        for mine, theirs in zip(_tensors(compiled), _tensors(one_by_one), strict=True):
            assert relative(mine, theirs) <= 1e-6
            assert not mine[3].any()
        assert not torch.equal(compiled.weights.cpu(), drawn[0])


def _errors(
    drawn: Drawn, backend: str, device: torch.device, dtype: torch.dtype, expected: Sequence[Tensor]
) -> list[float] | str:
    """How far off the map and the gradients are, relative; or what was raised."""
    try:
        found = drawn.by(backend, device, dtype)
        if any(tensor.dtype != dtype for tensor in found):
            return f"gives {[tensor.dtype for tensor in found]}"
        return [relative(mine.double(), wanted) for mine, wanted in zip(found, expected, strict=True)]
    except Exception as error:  # noqa: BLE001 (of whatever kind: the other backends are tried as well)
        return f"{type(error).__name__}: {error}"


def _as_map(x_RMCHW: Tensor) -> Tensor:
    """M(R·C)HW, channels last."""
    return x_RMCHW.permute(1, 3, 4, 0, 2).flatten(3).contiguous().permute(0, 3, 1, 2)


def _of_map(map_: Tensor) -> Tensor:
    """The inverse."""
    return map_.unflatten(1, (ROWS, -1)).transpose(0, 1)


def _moved(amount: float | Tensor, device: torch.device) -> float | Tensor:
    return amount.to(device) if isinstance(amount, Tensor) else amount


def _numbers(device: torch.device) -> object:
    epoch = Epoch(11, 1, 96, device)

    def drawn(what: Purpose) -> Numbers:
        return epoch.numbers(what, 0, 96)

    return drawn


def _tensors(rows: Rows) -> tuple[Tensor, ...]:
    return rows.weights, rows.gradient, rows.first, rows.second
