"""A stage of several processes that says which it is; for test_sweep."""

import os
import sys

sys.stdout.write(f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}: {sys.argv[1]}\n")
