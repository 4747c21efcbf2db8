"""An agent as a process of its own, to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.simulators.agent_run import quick_config
from tests.simulators.fleet_server import FleetServer

ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class AgentProcess:
    """`python -m edge_agent run` on a state directory, with the quick settings in its environment."""

    state_dir: Path
    fleet: FleetServer
    changes: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.state_dir / "run" / "api.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_agent", "run"], cwd=ROOT, env=self.environment(), stderr=subprocess.DEVNULL
        )

    def environment(self) -> dict[str, str]:
        # Real processes share the cores with the rest of the suite: one that is slow for a second does not hang.
        changes = {"engine_hang_timeout_s": 20.0, "token": self.fleet.token} | self.changes
        config = quick_config(self.state_dir, self.fleet.url, **changes).model_dump(mode="json", exclude_none=True)
        ours = {f"SOCLE_AGENT_{k.upper()}": v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
        return {**os.environ, **ours}

    def engines(self) -> list[psutil.Process]:
        """Its engine processes."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> list[psutil.Process]:
        """SIGKILL; returns the engines that it had."""
        assert self.process is not None
        engines = self.engines()
        self.process.kill()
        self.process.wait()
        return engines

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def ask(self, model: str, words: str) -> str | None:
        """The answer, None if there is none now."""
        try:
            url = json.loads((self.state_dir / "run" / "api.json").read_bytes())["url"]
            body = {"model": model, "messages": [{"role": "user", "content": words}]}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30.0)
        except (OSError, httpx2.HTTPError):
            return None
        return str(answer.json()["choices"][0]["message"]["content"]) if answer.status_code == 200 else None

    def until(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process is None or self.process.poll() is None, "the agent has died"
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.02)
