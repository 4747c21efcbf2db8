"""When downloads may run: within the windows of the device and of its fleet, and not while a person has paused them.

A download that is under way when the gate shuts ends its request, keeps what has come, and goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.protocol import Window


class Gate:
    """Open unless a window or a person says no. `paused` is a file that a person makes and removes."""

    def __init__(
        self,
        window: Window | None = None,
        paused: Path | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_again_s: float = 1.0,
    ) -> None:
        self.on_wait: Callable[[float], None] = lambda _: None
        self._look_again_s = look_again_s
        self._own = (window,) if window else ()
        self._fleets: tuple[Window, ...] = ()
        self._paused = paused
        self._now = now

    @property
    def reason(self) -> str:
        """Why it is shut: `paused` or `outside_window`; "" while it is open."""
        if self._paused is not None and self._paused.exists():
            return "paused"
        now = self._now()
        return "" if all(window.holds(now) for window in (*self._own, *self._fleets)) else "outside_window"

    @contextmanager
    def within(self, windows: Sequence[Window]) -> Iterator[None]:
        """As long as this holds, the fleet's windows must be open as well as the device's own."""
        self._fleets = tuple(windows)
        try:
            yield
        finally:
            self._fleets = ()

    async def wait(self) -> None:
        """Until it is open; `on_wait` hears of the seconds as they pass."""
        while self.reason:
            await asyncio.sleep(self._look_again_s)
            self.on_wait(self._look_again_s)
