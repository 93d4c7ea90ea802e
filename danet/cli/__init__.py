"""The ``danet`` command."""

from danet.core.console import prepare_program

prepare_program()  # before the long imports
