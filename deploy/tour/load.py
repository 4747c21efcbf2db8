"""Steady requests to several devices at once, counted: what was sent, what was dropped, what the answers were."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx2

from deploy.tour.api import DeviceApi, Messages, RefusedError
from deploy.tour.stack import StackError

PAUSE_S = 0.05


@dataclass(slots=True)
class Load:
    """One thread per device asks the same question again and again between `with` and its end."""

    devices: dict[str, DeviceApi]
    model: str
    question: Messages
    answers: dict[str, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for name, device in self.devices.items():
            self.answers[name] = []
            self._threads.append(threading.Thread(target=self._ask, args=(name, device), name=f"load-{name}"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def num_sent(self) -> int:
        """Requests that have ended, well or not."""
        return sum(map(len, self.answers.values())) + len(self.errors)

    @property
    def num_dropped(self) -> int:
        """Requests that got an error or no answer."""
        return len(self.errors)

    def wait_for_more(self, num_requests: int, timeout_s: float = 60.0) -> None:
        """Until each device has answered that many further requests."""
        target = {name: len(answers) + num_requests for name, answers in self.answers.items()}
        deadline = time.monotonic() + timeout_s
        while any(len(self.answers[name]) < count for name, count in target.items()):
            if time.monotonic() > deadline:
                raise StackError(f"the devices do not answer: {self.errors[-1:]}")
            time.sleep(PAUSE_S)

    def first_and_last(self) -> dict[str, tuple[str, str]]:
        """The first and the last answer of each device."""
        return {name: (answers[0], answers[-1]) for name, answers in self.answers.items()}

    def _ask(self, name: str, device: DeviceApi) -> None:
        while not self._stopping.is_set():
            try:
                self.answers[name].append(device.chat(self.model, self.question).text)
            except (RefusedError, httpx2.HTTPError) as error:
                self.errors.append(f"{name}: {error!r}")
            time.sleep(PAUSE_S)
