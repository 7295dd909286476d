"""The commands of `in9`: their flags, what they do, and what they print."""

import os

# numpy reads this when it is imported. Its linear algebra in `transforms.power` consists of many
# small steps, and threads that wait for each other after each of them use several times the CPU
# without saving time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
