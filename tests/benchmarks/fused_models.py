"""Models of the sizes that benchmarks compare, of layers that have a stacked form."""

from __future__ import annotations

from torch import nn

from objectives.models import InputShape, ResidualBlock

MODULE = __name__
"""What has to be allowed where trials name these factories."""


def resnet18(input_shape: InputShape, classes: int) -> nn.Module:
    """ResNet-18 as small images want it: a first convolution of 3×3, no pool after it; 11 million parameters.

    He et al. 2016, section 4.2, table 1.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(ResidualBlock(channels, out, 2 if stage and not block else 1, nn.BatchNorm2d))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def airbench(input_shape: InputShape, classes: int) -> nn.Module:
    """Of the layers and widths of airbench94 (Jordan 2024, arXiv 2404.00498): 2 million parameters.

    Its whitening and its scaled last layer, which change no size, are left out; images of 16 pixels and more.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 24, 2), nn.GELU()]
    channels = 24
    for out in (64, 256, 256):
        layers += [
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(out),
            nn.GELU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.GELU(),
        ]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
