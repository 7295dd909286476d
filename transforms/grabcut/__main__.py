"""Compiles the kernels ahead of the first picture: `python -m transforms.grabcut`.

For machines whose image is built once and started often. Exit code 1 if it cannot be done.
"""

from __future__ import annotations

import sys

from transforms.grabcut import Unavailable, prepare


def main() -> None:
    """Compiles what is not compiled yet; says so, or why not."""
    try:
        prepare(lambda: print("compiling ...", file=sys.stderr))
    except Unavailable as error:
        sys.exit(str(error))
    print("the kernels of GrabCut are ready", file=sys.stderr)


if __name__ == "__main__":
    main()
