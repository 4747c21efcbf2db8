"""`python -m engine.bench.contestants NAME`: a contestant that answers the conductor on its standard output."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

from engine.bench.contestants import REGISTRY
from engine.bench.protocol import serve

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> None:
    """Serve until the input ends. What the engines print goes to the log, so that answers stay alone."""
    _end_with_conductor()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(REGISTRY[sys.argv[1]].make(), sys.stdin, answers)


def _end_with_conductor() -> None:
    """A stopped process does not see its input end, and would keep its model in memory for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
