"""The commands of `in9`: flags, what each makes of them, and what it says."""

import os

# Read when numpy is imported. Its linear algebra (`transforms.power`) is many small steps, after
# each of which threads would wait for each other: several times the CPU for no less time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
