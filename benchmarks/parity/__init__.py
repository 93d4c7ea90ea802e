"""Parity: is what the harness computes what each source's code computes?

    make parity                                  # or: .venv/bin/python -m benchmarks.parity

makes an environment of the peers' own in ``build/parity-env`` (``requirements.txt`` with dependencies,
``requirements-peers.txt`` without), runs ``peers/*.py`` in it, which write weights' names, inputs, draws and outputs to
``build/parity``, compares ours with them, and writes ``reports/parity.md``. The exit status is 1 if a bound is broken.

=================  =========================================================================================
source             compared with
=================  =========================================================================================
mmsegmentation     package mmsegmentation 1.2.2 with the configs inside it (no CUDA, mmcv-lite); 0.x by closed form
                   (poly over T) or by the package's own parts driven as 0.x drove them (scales of the ms test)
sssegmentation     package sssegmentation 1.7.0 (settings of its repository's DANet configs)
official, DRANet,  not installable: ``reference.py``, slow and plain, from the formulas; PIL for the augmentation
ClusterDANet
metrics            also torchmetrics, and pixel-by-pixel Python
=================  =========================================================================================

Weights and inputs are functions of names (``common.py``), so nothing large is stored. ``tests/parity/data`` holds the
small cases' outputs of our own runs of the peers; ``--write-fixtures`` renews them.

Gradients and training are compared in float64, where nothing hangs on rounding (``compare.py``, ``training.py``).

Dropout is off on both sides: masks of two torch versions cannot be shared, and its rate and places show in the code.
"""
