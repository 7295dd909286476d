"""Compiles the kernels ahead of the first picture: `python -m transforms.grabcut`.

This is for container images, which are built once and started often. The exit code is 1 if the
kernels cannot be compiled, or their code cannot be kept.
"""

import sys

from transforms.grabcut import Unavailable, prepare


def main() -> None:
    """Compiles the kernels, if they have not been, and prints the outcome to standard error."""
    try:
        if not prepare(lambda: print("compiling ...", file=sys.stderr)):
            sys.exit("the kernels of GrabCut can be compiled, but not kept")
    except Unavailable as error:
        sys.exit(str(error))
    print("the kernels of GrabCut are ready", file=sys.stderr)


if __name__ == "__main__":
    main()
