"""Dilated ResNet-50 and ResNet-101, as all sources of DANet use them.

The stride of a stage lies on the 3x3 convolution of its first block, the shortcut is a strided 1x1 convolution, and
no stage has pooling in its shortcut. At output stride 8 the dilations are layer3 ``1, 2, 2, ...`` and layer4
``2, 4, 4``; at 16 only layer4 is dilated, ``1, 2, 2`` (mmsegmentation's ``contract_dilation``; the official code and
torchvision's ``replace_stride_with_dilation`` give the same). A multi-grid replaces layer4's three dilations.
"""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn

from danet.config.row import BackboneInit

Stem = Literal["7x7", "deep-32-32-64", "deep-64-64-128"]
Features = tuple[Tensor, Tensor, Tensor, Tensor]

BLOCKS: Final[dict[str, tuple[int, int, int, int]]] = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
EXPANSION: Final = 4
CHANNELS: Final = (256, 512, 1024, 2048)
"""Channels of the features of layer1 to layer4."""


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1 convolutions around a shortcut, each with batch normalisation."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, 4 * width, ceil(H / stride), ceil(W / stride))``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        result: Tensor = self.relu(out)
        return result


class ResNet(nn.Module):
    """The backbone.

    Args:
        name: ``resnet50`` or ``resnet101``.
        stem: ``7x7`` (64 channels), or three 3x3 convolutions of the named widths.
        output_stride: of layer4's features; 8 or 16.
        multi_grid: absolute dilations of layer4's three blocks (the official Cityscapes model: 4, 8, 16).
        init: how it starts without ImageNet weights.
    """

    def __init__(
        self,
        name: str,
        stem: Stem,
        output_stride: Literal[8, 16],
        multi_grid: tuple[int, int, int] | None = None,
        init: BackboneInit = "kaiming",
    ) -> None:
        super().__init__()
        self.stem = _stem(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = BLOCKS[name]
        if output_stride == 8:
            strides = (1, 2, 1, 1)
            dilations = ([1] * blocks[0], [1] * blocks[1], [1, *[2] * (blocks[2] - 1)], [2, 4, 4])
        else:
            strides = (1, 2, 2, 1)
            dilations = ([1] * blocks[0], [1] * blocks[1], [1] * blocks[2], [1, 2, 2])
        if multi_grid is not None:
            dilations = (*dilations[:3], list(multi_grid))
        channels = 128 if stem == "deep-64-64-128" else 64
        layers = []
        for width, stride, stage in zip((64, 128, 256, 512), strides, dilations, strict=True):
            layer = []
            for index, dilation in enumerate(stage):
                layer.append(Bottleneck(channels, width, stride if index == 0 else 1, dilation))
                channels = width * EXPANSION
            layers.append(nn.Sequential(*layer))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        if init != "pytorch":
            self._initialise(last_norm=0.0 if init == "mmsegmentation" else 1.0)

    def _initialise(self, last_norm: float) -> None:
        """Training from scratch: Kaiming normal over fan-out, batch normalisation the identity (official code).

        mmsegmentation's ``zero_init_residual``: each residual branch ends in a norm of weight ``last_norm`` 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, last_norm)

    def forward(self, images_N3HW: Tensor) -> Features:
        """Features of layer1 to layer4 of normalised RGB images of any size.

        Returns:
            ``(N, 256, H/4, W/4)``, ``(N, 512, H/8, W/8)``, ``(N, 1024, h, w)``, ``(N, 2048, h, w)`` with
            ``h = H / output_stride``; every halving rounds up.
        """
        x = self.maxpool(self.stem(images_N3HW))
        x1 = self.layer1(x)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return x1, x2, x3, self.layer4(x3)


def _stem(stem: Stem) -> nn.Sequential:
    """The layers before the first pooling; their indices are part of our parameter names."""
    if stem == "7x7":
        return nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
    layers: list[nn.Module] = []
    channels = 3
    for index, width in enumerate(map(int, stem.split("-")[1:])):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2 if index == 0 else 1, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers)
