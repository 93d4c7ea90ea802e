"""The networks: a dilated ResNet, the attention modules, and the heads of DANet, DRANet and ClusterDANet."""

from danet.models.segmentor import Segmentor, build_model

__all__ = ["Segmentor", "build_model"]
