"""An agent as a process of its own that is born with its imports done, and with a fault in it.

A fork server imports the agent once; each agent is forked from it, so that a case starts in some milliseconds. It is a
real process: it has its own memory, is killed by SIGKILL, and starts engine processes of its own, which end with it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import multiprocessing
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import typer.main

from edge_agent.__main__ import app
from edge_agent.engine_child import EngineChild
from edge_agent.engine_loop import serve
from tests.kill_matrix.faults import Fault, install
from tests.simulators.agent_run import SCRIPTED_ENGINE, quick_config
from tests.simulators.scripted_engine import ScriptedEngine

_IMPORTED_LATE = (
    "_strptime",
    "anyio._backends._asyncio",
    "tuf.api.serialization.json",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.kill_matrix.agent", *_IMPORTED_LATE])
_PATIENCE = {
    "engine_hang_timeout_s": 20.0,
    "engine_heartbeat_s": 0.5,
    "telemetry_interval_s": 2.0,
    "sample_interval_s": 2.0,
}
"""What a case does not wait for need not happen often."""
MESSAGES = [{"role": "user", "content": "hi"}]
MAX_TOKENS = 16
_COMMAND = typer.main.get_command(app)
_LOCK = threading.Lock()
"""`multiprocessing` looks at all children when one is started, and only the first to look gets an exit code."""


def _main(state_dir: Path, environment: dict[str, str], fault: Fault, log: Path) -> None:
    """In the new process: what `python -m edge_agent run` does, with the fault around it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    _hurry()
    install(state_dir, fault)
    try:
        _COMMAND(["run"])
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def _hurry() -> None:
    """Leave out what takes long in each process and has no part in any case."""
    # The system's certificates: the fleet here speaks plain HTTP.
    ssl.SSLContext.load_verify_locations = lambda *_, **__: None
    # Looking through what the fork server has made, and adding up pages that an engine shares with it.
    gc.freeze()
    EngineChild.pss_bytes = lambda _: 0
    # The scripted engine's imports: its process goes on with those of the agent instead of running a program.
    asyncio.create_subprocess_exec = _forking(asyncio.create_subprocess_exec)


def _forking(real: Callable[..., Any]) -> Callable[..., Any]:
    async def start(*command: str, pass_fds: Collection[int], **options: Any) -> Any:
        if command == SCRIPTED_ENGINE:
            options["preexec_fn"] = functools.partial(_be_engine, pass_fds)
        return await real(*command, pass_fds=pass_fds, **options)

    return start


def _be_engine(descriptors: Collection[int]) -> None:
    """Never returns. Closes what it has inherited, but for these and its standard input and output."""
    start = 3
    for descriptor in (*sorted(descriptors), os.sysconf("SC_OPEN_MAX")):
        os.closerange(start, descriptor)
        start = descriptor + 1
    serve(ScriptedEngine)
    os._exit(0)


@dataclass(slots=True)
class ForkedAgent:
    """An agent on a state directory."""

    state_dir: Path
    server: str
    settings: dict[str, Any] = field(default_factory=dict)
    process: Any = None

    @property
    def log(self) -> Path:
        return self.state_dir.with_suffix(".log")

    def start(self, fault: Fault, *, keeps_api: bool = False) -> None:
        if not keeps_api:
            (self.state_dir / "run" / "api.json").unlink(missing_ok=True)
        settings = quick_config(self.state_dir, self.server, **(_PATIENCE | self.settings))
        config = settings.model_dump(mode="json", exclude_none=True)
        ours = {f"SOCLE_AGENT_{k.upper()}": v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
        self.process = _SERVER.Process(target=_main, args=(self.state_dir, ours, fault, self.log), daemon=True)
        with _LOCK:
            self.process.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs, the negative signal if it was killed."""
        with _LOCK:
            return self.process.exitcode

    def wait(self, timeout_s: float) -> int | None:
        deadline_s = time.monotonic() + timeout_s
        while self.exit_code is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        return self.exit_code

    def is_paused(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def stop(self) -> int | None:
        """As an init system would; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.wait(10)

    def ask(self, model: str) -> str | None:
        """The greedy answer to `MESSAGES`, None if there is none now."""
        try:
            port = json.loads((self.state_dir / "run" / "api.json").read_bytes())["port"]
            with closing(HTTPConnection("127.0.0.1", port, timeout=15.0)) as connection:
                body = json.dumps({"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": MAX_TOKENS})
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                document = json.loads(answer.read())
            return str(document["choices"][0]["message"]["content"]) if answer.status == 200 else None
        except (OSError, ValueError, HTTPException):
            return None
