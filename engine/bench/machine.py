"""What this machine can do at most: reading from memory, and int8 arithmetic.

Measured by the native module; unknown where that is not built.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NATIVE_MODULE: Final = "socle_native"


@dataclass(frozen=True, slots=True)
class Capability:
    """All cores together; None where it is not known."""

    read_bytes_per_s: float | None
    int8_macs_per_s: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were taken on. load: processes that wanted to run in the minute before."""

    processor: str
    num_cores: int
    python: str
    load: float

    @property
    def is_busy(self) -> bool:
        """Whether others take so much of it that figures mean little."""
        return self.load > self.num_cores / 2


def describe_machine() -> Machine:
    """Of this process."""
    return Machine(_processor(), num_usable_cores(), platform.python_version(), os.getloadavg()[0])


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def measure_capability(num_threads: int) -> Capability:
    """Measured now, since a shared machine changes by the minute; 0 threads means all cores."""
    native = _native()
    count = num_threads or num_usable_cores()
    return Capability(_call(native, "read_bandwidth", count), _call(native, "dot_peak", count))


def _native() -> Any:
    try:
        return importlib.import_module(NATIVE_MODULE)
    except ImportError:
        return None


def _call(native: Any, name: str, num_threads: int) -> float | None:
    probe: Callable[[int], float] | None = getattr(native, name, None)
    return (float(probe(num_threads)) or None) if probe else None  # 0: this processor's peak is not measured


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
