"""Weights: ImageNet initialisation, trained rows in our own format, and checkpoints released by the sources."""
