"""`python -m pipeline`, the same as `in9`."""

import sys

from pipeline.cli import main

sys.exit(main())
