"""Our reference path, our fast path and mmsegmentation, in turns on the same machine: ``make benchmark``, ``make gpu``.

Each implementation is a process of its own (:mod:`.timing`); for a case all are built and warmed up, then each
runs once per round. So a machine that is busy for a while slows all of them, and the ratio of two implementations is
taken round by round. Times are medians with the interquartile range.

A CSV file per subject states device and versions in its name and has a line per case and implementation, with
operations and bytes (:mod:`danet.evaluation.flops`) against the device's measured peaks:
``roofline = max(FLOP / peak FLOP/s, bytes / peak bytes/s)``, ``share = roofline / median``. Operations are counted
as the explicit, unfused network does them in float32, so a path that computes less or fuses more may pass 100%.
"""
