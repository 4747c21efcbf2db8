"""The device's temperature, where the system shows one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

SENSORS = Path("/sys/class/thermal")


def temperature_c(sensors: Path = SENSORS) -> float | None:
    """Of the hottest sensor, in degrees Celsius; None if there is none."""
    found = []
    for path in sensors.glob("thermal_zone*/temp"):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1000)
    return max(found, default=None)
