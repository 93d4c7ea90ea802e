"""The decoding heads. Each takes the backbone's features and gives logits by name, at the head's own resolution."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from danet.models.attention import (
    Attention,
    ChannelAttention,
    Clustering,
    CompactChannelDecoder,
    CompactPositionDecoder,
    CompactPositionEncoder,
    CrossLevelGate,
    PositionAttention,
    conv_bn_relu,
)
from danet.models.dropout import Dropout2d
from danet.models.resnet import CHANNELS, Features

DROPOUT: Final = 0.1
WIDTH: Final = CHANNELS[3] // 4
KEY_CHANNELS: Final = WIDTH // 8


class DANetHead(nn.Module):
    """DANet: position and channel attention side by side on layer4's features, and their sum."""

    def __init__(self, num_classes: int, pam_bias: bool = True, attention: Attention = "fused") -> None:
        super().__init__()
        self.pam_in = conv_bn_relu(CHANNELS[3], WIDTH, 3)
        self.pam = PositionAttention(WIDTH, KEY_CHANNELS, pam_bias, attention)
        self.pam_out = conv_bn_relu(WIDTH, WIDTH, 3)
        self.cam_in = conv_bn_relu(CHANNELS[3], WIDTH, 3)
        self.cam = ChannelAttention()
        self.cam_out = conv_bn_relu(WIDTH, WIDTH, 3)
        self.dropout = Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(WIDTH, num_classes, 1)
        self.pam_classifier = nn.Conv2d(WIDTH, num_classes, 1)
        self.cam_classifier = nn.Conv2d(WIDTH, num_classes, 1)

    def attended(self, position: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        """The input of each branch, ``(N, 512, h, w)``, after its attention."""
        return self.pam(position), self.cam(channel)

    def forward(self, features: Features, all_heads: bool) -> dict[str, Tensor]:
        """Logits ``(N, num_classes, h, w)`` of layer4's size: ``main``, and with ``all_heads`` ``pam`` and ``cam``."""
        x = features[3]
        position, channel = self.attended(self.pam_in(x), self.cam_in(x))
        position, channel = self.pam_out(position), self.cam_out(channel)
        logits = {"main": self.classifier(self.dropout(position + channel))}
        if all_heads:
            logits["pam"] = self.pam_classifier(self.dropout(position))
            logits["cam"] = self.cam_classifier(self.dropout(channel))
        return logits


class ClusterDANetHead(DANetHead):
    """ClusterDANet: before either attention the features are replaced by their similarities to 512 running centres."""

    def __init__(self, num_classes: int, pam_bias: bool = True, attention: Attention = "fused") -> None:
        super().__init__(num_classes, pam_bias, attention)
        self.pam_clusters = Clustering(WIDTH, WIDTH)
        self.cam_clusters = Clustering(WIDTH, WIDTH)

    def attended(self, position: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters, then attends."""
        return super().attended(self.pam_clusters(position), self.cam_clusters(channel))


class DRANetHead(nn.Module):
    """DRANet (official ``Dran``): compact attentions on layer4, fused, then gated together with layer1."""

    def __init__(self, num_classes: int, align_corners: bool = True) -> None:
        super().__init__()
        self.cpam_in = conv_bn_relu(CHANNELS[3], WIDTH, 3)
        self.cpam_encoder = CompactPositionEncoder(WIDTH)
        self.cpam_decoder = CompactPositionDecoder(WIDTH)
        self.cpam_out = conv_bn_relu(WIDTH, WIDTH, 3)
        self.ccam_in = conv_bn_relu(CHANNELS[3], WIDTH, 3)
        self.ccam_encoder = conv_bn_relu(WIDTH, WIDTH // 16, 1)
        self.ccam_decoder = CompactChannelDecoder()
        self.ccam_out = conv_bn_relu(WIDTH, WIDTH, 3)
        self.cat = conv_bn_relu(2 * WIDTH, WIDTH // 2, 3)
        self.gate = CrossLevelGate(CHANNELS[0], align_corners)
        self.dropout = Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(CHANNELS[0], num_classes, 1)

    def forward(self, features: Features, all_heads: bool) -> dict[str, Tensor]:
        """Logits ``main`` ``(N, num_classes, H/4, W/4)`` of layer1's size, whatever ``all_heads``."""
        low, high = features[0], features[3]
        channel = self.ccam_in(high)
        channel = self.ccam_out(self.ccam_decoder(channel, self.ccam_encoder(channel)))
        position = self.cpam_in(high)
        position = self.cpam_out(self.cpam_decoder(position, self.cpam_encoder(position)))
        fused = self.gate(low, self.cat(torch.cat((position, channel), dim=1)))
        return {"main": self.classifier(self.dropout(fused))}


class FCNHead(nn.Module):
    """The auxiliary head on layer3's features, of the given width."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(CHANNELS[2], channels, 3)
        self.dropout = Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Logits ``(N, num_classes, h, w)`` of layer3's size."""
        logits: Tensor = self.classifier(self.dropout(self.conv(features[2])))
        return logits
