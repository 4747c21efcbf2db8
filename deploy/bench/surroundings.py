"""What every benchmark of the whole device says of the machine, and how it tells people what it does."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from typing import Any


def machine() -> dict[str, Any]:
    """The machine, and how busy it is now."""
    return {
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def say(text: str) -> None:
    """Tell people; the report has standard output to itself."""
    print(text, file=sys.stderr, flush=True)
