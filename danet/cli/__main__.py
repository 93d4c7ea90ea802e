"""``python -m danet.cli``, which torchrun needs."""

from danet.cli.app import main

main()
