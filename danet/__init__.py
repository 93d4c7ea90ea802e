"""Reproducibility harness for DANet (Dual Attention Network for Scene Segmentation, CVPR 2019)."""

__version__ = "0.1.0"
