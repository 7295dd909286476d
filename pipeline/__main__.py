"""`python -m pipeline`, the same as `in9`."""

from in9 import main

main()
