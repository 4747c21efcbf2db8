"""`python -m engine.bench.contestants NAME`: a contestant that answers the conductor on its standard output."""

from __future__ import annotations

import os
import sys

from engine.bench.contestants import REGISTRY
from engine.bench.protocol import serve


def main() -> None:
    """Serve until the input ends. What the engines print goes to the log, so that answers stay alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(REGISTRY[sys.argv[1]].make(), sys.stdin, answers)


if __name__ == "__main__":
    main()
