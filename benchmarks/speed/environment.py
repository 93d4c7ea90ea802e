"""Makes the peers' environment if need be and prints the path of its Python as the last line."""

from __future__ import annotations

from benchmarks.parity.__main__ import prepare_environment

if __name__ == "__main__":
    print(prepare_environment())
