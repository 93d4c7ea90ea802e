"""Speed, side by side: mmsegmentation's half of ``python -m benchmarks.speed time``, run in an environment of its own.

build/parity-env/bin/python -m benchmarks.speed.mmseg    # a worker of benchmarks.speed.timing, driven by the harness
"""
