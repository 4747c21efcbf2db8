"""The conductor's end of the conversation with one contestant's process.

A contestant runs only while it has a question to answer: the process is stopped (SIGSTOP) before and after, so that
threads which spin or still tidy up take nothing from the others.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.metrics import process_memory

ANSWER_TIMEOUT_S: Final = 1800.0
_CLOSE_TIMEOUT_S: Final = 20.0
_SAMPLE_PERIOD_S: Final = 0.02


class ContestantError(Exception):
    """A contestant cannot go on; the others can."""


@dataclass(slots=True)
class PeakMemory:
    """The most that samples of a process have shown, in bytes."""

    pss_bytes: int = 0
    anonymous_bytes: int = 0

    def observe(self, pss_bytes: int, anonymous_bytes: int) -> None:
        """Add a sample."""
        self.pss_bytes = max(self.pss_bytes, pss_bytes)
        self.anonymous_bytes = max(self.anonymous_bytes, anonymous_bytes)


class Child:
    """One contestant's process. What it writes to standard error goes to its log."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, directory: Path | None = None) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, or a test's
                command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self._pause()

    def ask(self, op: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **fields: Any) -> dict[str, Any]:
        """The answer to a request; raises `ContestantError` if it fails, ends or takes too long."""
        self._process.send_signal(signal.SIGCONT)
        try:
            answer = self._exchange({"op": op, **fields}, timeout_s)
        finally:
            self._pause()
        if "error" in answer:
            raise ContestantError(f"{op}: {answer['error']}; see {self._log}")
        return answer

    @contextmanager
    def sampled_memory(self) -> Iterator[PeakMemory]:
        """The peak of the process's memory while the block runs. Sampling slows it a little, so time nothing in it."""
        peak, is_over = PeakMemory(), threading.Event()
        smaps = Path(f"/proc/{self._process.pid}/smaps_rollup")

        def sample() -> None:
            while not is_over.wait(_SAMPLE_PERIOD_S):
                peak.observe(*process_memory(smaps))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            is_over.set()
            thread.join()
            peak.observe(*process_memory(smaps))

    def close(self) -> None:
        """End the process: kindly, then not."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(_CLOSE_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _exchange(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            os.write(self._process.stdin.fileno(), json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ContestantError(f"{request['op']}: the process has ended; see {self._log}") from error
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._process.kill()
            raise ContestantError(f"{request['op']}: no answer within {timeout_s:.0f} s; see {self._log}")
        line = self._process.stdout.readline()
        if not line:
            raise ContestantError(f"{request['op']}: the process has ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer
