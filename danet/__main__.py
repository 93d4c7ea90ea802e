"""``python -m danet``, which torchrun needs."""

from danet.cli import main

main()
