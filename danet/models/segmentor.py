"""Backbone and heads as one network, and its initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from danet.config.row import Model
from danet.models.attention import Attention
from danet.models.heads import ClusterDANetHead, DANetHead, DRANetHead, FCNHead
from danet.models.resnet import ResNet


class Segmentor(nn.Module):
    """A segmentation network: ``backbone``, ``head`` and, where the row has one, ``aux_head``.

    Parameter names start with one of these three. Converting with ``SyncBatchNorm.convert_sync_batchnorm``, half
    precision by autocast, ``channels_last`` and ``torch.compile`` are all supported.
    """

    def __init__(self, config: Model, num_classes: int, attention: Attention = "fused") -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = ResNet(
            config.backbone, config.stem, config.output_stride, config.multi_grid, config.backbone_init
        )
        self.head: DANetHead | DRANetHead
        if config.method == "dranet":
            self.head = DRANetHead(num_classes, config.align_corners)
        else:
            kind = ClusterDANetHead if config.method == "clusterdanet" else DANetHead
            self.head = kind(num_classes, config.pam_bias, attention)
        self.aux_head = FCNHead(config.aux_channels, num_classes) if config.aux_channels is not None else None
        if config.init == "mmsegmentation":
            self._initialise_as_mmsegmentation()

    def _initialise_as_mmsegmentation(self) -> None:
        """Kaiming normal for convolutions before a batch normalisation, N(0, 0.01) for main and auxiliary classifier.

        The pam and cam classifiers and the projections of the attention keep PyTorch's default, which is what
        mmsegmentation's init functions leave them with.
        """
        heads = [self.head] if self.aux_head is None else [self.head, self.aux_head]
        for head in heads:
            for block in head.modules():
                if isinstance(block, nn.Sequential) and isinstance(block[0], nn.Conv2d):
                    nn.init.kaiming_normal_(block[0].weight, mode="fan_out", nonlinearity="relu")
            nn.init.normal_(head.classifier.weight, std=0.01)
            assert head.classifier.bias is not None
            nn.init.zeros_(head.classifier.bias)

    def forward(self, images_N3HW: Tensor, all_heads: bool | None = None) -> dict[str, Tensor]:
        """Logits of every output, not resized.

        Args:
            images_N3HW: normalised RGB, any size.
            all_heads: whether to add the outputs that only training needs; by default in training mode.

        Returns:
            ``main`` ``(N, num_classes, h, w)`` (stride 8 or 16, DRANet 4; every halving rounds up), and with
            ``all_heads`` ``pam`` and ``cam`` of the same shape (DANet, ClusterDANet) and ``aux`` where the row has it.
        """
        if all_heads is None:
            all_heads = self.training
        features = self.backbone(images_N3HW)
        logits: dict[str, Tensor] = self.head(features, all_heads)
        if all_heads and self.aux_head is not None:
            logits["aux"] = self.aux_head(features)
        return logits


def build_model(config: Model, num_classes: int, attention: Attention = "fused") -> Segmentor:
    """The network of a row, randomly initialised from PyTorch's global generator."""
    return Segmentor(config, num_classes, attention)
