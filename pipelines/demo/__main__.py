"""``python -m pipelines.demo``."""

from pipelines.demo import main

main()
