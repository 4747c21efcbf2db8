"""When downloads may run: within a window of the day, and not while a person has paused them.

A download that is under way when the gate shuts ends its request, keeps what has come, and goes on where it was.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo

_WINDOW = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d) (\S+)")


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to before `end` of each day, by the clocks of one time zone; over midnight if `end` is earlier."""

    start: time
    end: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> Self:
        """A window as people write it, `22:00-06:00 Europe/Berlin`; raises `ValueError`."""
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r:.80} is no window such as '22:00-06:00 Europe/Berlin'")
        start, end = time.fromisoformat(found[1]), time.fromisoformat(found[2])
        if start == end:
            raise ValueError(f"the window {text!r} is empty: leave it out to download at any time")
        try:
            return cls(start, end, ZoneInfo(found[3]))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"this system knows no time zone {found[3]!r}: take UTC or install tzdata") from error

    def holds(self, now: datetime) -> bool:
        """Whether it is open at this moment."""
        local = now.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end


class Gate:
    """Open unless the window or a person says no. `paused` is a file that a person makes and removes."""

    def __init__(
        self,
        window: Window | None = None,
        paused: Path | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_again_s: float = 1.0,
    ) -> None:
        self._look_again_s = look_again_s
        self._window = window
        self._paused = paused
        self._now = now

    @property
    def reason(self) -> str:
        """Why it is shut: `paused` or `outside_window`; "" while it is open."""
        if self._paused is not None and self._paused.exists():
            return "paused"
        return "" if self._window is None or self._window.holds(self._now()) else "outside_window"

    async def wait(self) -> None:
        """Until it is open."""
        while self.reason:  # noqa: ASYNC110 - a clock and a file tell nobody
            await asyncio.sleep(self._look_again_s)
