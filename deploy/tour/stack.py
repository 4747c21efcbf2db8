"""The processes of a Socle on one machine: web server, worker with beat, and one agent per device.

Knows how they are started, found ready, and stopped; nothing of what is published or asked. Each process writes its
log into `<directory>/logs`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[2]
STOP_GRACE_S = 10.0
PUBLISHER = "demo-team"


class StackError(Exception):
    """A process did not come up or died; the message shows the end of its log."""


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_port(directory: Path, wanted: int) -> int:
    """The server's port for this directory: the one of its first run, since devices enrol at an address for good.

    wanted: 0 for any. Raises `StackError` if the directory's devices know another one, or somebody listens there.
    """
    kept = directory / "port"
    port = int(kept.read_text()) if kept.exists() else wanted or free_port()
    if wanted not in (0, port):
        raise StackError(f"the devices in {directory} are enrolled at port {port}: leave --port out, or add --fresh")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackError(f"port {port}: {error.strerror}. Stop what listens there, or add --fresh") from error
    directory.mkdir(parents=True, exist_ok=True)
    kept.write_text(str(port))
    return port


@dataclass(slots=True)
class Process:
    """One child with a log file, in a session of its own so that Ctrl-C reaches the demo alone."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(  # noqa: S603 - our own command line
                self.command, cwd=ROOT, env=dict(self.environment), stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> None:
        """Raise `StackError` if it has died."""
        if self.child is None or self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
            raise StackError(f"{self.name} has stopped. The end of {self.log}:\n{tail}")

    def kill(self) -> None:
        """SIGKILL, as power loss would."""
        if self.child is not None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what does not go in time."""
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(slots=True)
class Stack:
    """Server, worker and devices below one directory."""

    directory: Path
    port: int
    poll_interval_s: float = 1.0
    server: Process = field(init=False)
    worker: Process = field(init=False)
    devices: dict[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay out the directory; nothing is started yet."""
        for folder in ("logs", "data", "devices"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        listen = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]
        self.server = self._process("server", ["-m", "uvicorn", "fleet.asgi:application", *listen])
        worker = ["worker", "--beat", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING"]
        self.worker = self._process("worker", ["-m", "celery", "-A", "fleet", *worker])

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The operator token that the demo publishes with."""
        return self.directory / "operator-token"

    @property
    def password_file(self) -> Path:
        """The password of the dashboard's user `demo`."""
        return self.directory / "dashboard-password"

    def prepare(self) -> None:
        """Database, dashboard user and operator token; a second call finds them."""
        self._manage("migrate", "--verbosity", "0")
        if not self.password_file.exists():
            password = secrets.token_urlsafe(9)
            self._manage("createsuperuser", "--noinput", "--username", "demo", "--email", "demo@localhost",
                         DJANGO_SUPERUSER_PASSWORD=password)  # fmt: skip
            self.password_file.write_text(password)
        if not self.token_file.exists():
            self._manage("create_operator_token", "demo", "--scope", "admin", "--token-file", str(self.token_file))
        if not self.has_trust:
            self._hold_ceremony()

    @property
    def has_trust(self) -> bool:
        """Whether the ceremony was held in this directory."""
        return self.offline_key(PUBLISHER).exists()

    def offline_key(self, name: str) -> Path:
        """A key that nobody should keep beside the server; the demo does."""
        return self.directory / "offline-keys" / f"{name}.pem"

    def sign_command(self, *refs: str) -> list[str]:
        """The arguments of `manage.py` by which the publisher vouches for releases."""
        return ["trust", "sign", *refs, "--publisher", PUBLISHER, "--key", str(self.offline_key(PUBLISHER))]

    def manage(self, *arguments: str) -> str:
        """Run Django's command line on the demo's server; what it printed."""
        return self._manage(*arguments)

    def intrude(self, *arguments: str) -> str:
        """Do what an intruder on the server could; what `deploy.tour.intruder` printed."""
        return self._python("-m", "deploy.tour.intruder", *arguments).strip()

    def _hold_ceremony(self) -> None:
        """Throw-away keys, all in one place: on a real fleet root and targets keys are kept apart and offline."""
        if self._devices_exist():
            raise StackError(f"the devices in {self.directory} were enrolled before there were keys: add --fresh")
        for name in ("online-passphrase", "offline-passphrase"):
            (self.directory / name).write_text(secrets.token_urlsafe(24))
        self._manage("trust", "init", "--keys", str(self.offline_key(PUBLISHER).parent))
        publisher = ["--artifact", "*", "--new", str(self.offline_key(PUBLISHER))]
        self._manage("trust", "add-key", PUBLISHER, *publisher, "--key", str(self.offline_key("targets-1")))

    def _devices_exist(self) -> bool:
        return any((self.directory / "devices").glob("*/identity.json"))

    def start_server(self) -> None:
        """Web server and worker, until the server says that it is ready."""
        self.server.start()
        self.worker.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until `/readyz` answers 200."""
        wait_for(lambda: _answers(f"{self.url}/readyz"), "the server to be ready", watch=self.check)

    def add_device(self, name: str, enrolment_token: str | None) -> Process:
        """Start an agent with a state directory of its own; without a token it must have been enrolled before."""
        process = self.devices[name] = self.device_process(name, enrolment_token)
        process.start()
        return process

    def device_process(self, name: str, enrolment_token: str | None) -> Process:
        """The process of an agent, not started."""
        state = self.device_directory(name)
        arguments = ["--state-dir", str(state), "--server", self.url, "--name", name]
        if enrolment_token is not None:
            arguments += ["--token", enrolment_token]
        return self._process(name, ["-m", "edge_agent", "run", *arguments])

    def device_directory(self, name: str) -> Path:
        """The state directory of a device."""
        return self.directory / "devices" / name

    def check(self) -> None:
        """Raise `StackError` for the first process that has died."""
        for process in self._running():
            process.check()

    def close(self) -> None:
        """Stop everything. Devices first, so that their last reports and samples reach the server."""
        for process in (*self.devices.values(), self.worker, self.server):
            process.stop()

    def _running(self) -> list[Process]:
        return [p for p in (self.server, self.worker, *self.devices.values()) if p.child is not None]

    def _environment(self) -> dict[str, str]:
        ours = {
            "SOCLE_DATA_DIR": str(self.directory / "data"),
            "SOCLE_POLL_INTERVAL_S": str(self.poll_interval_s),
            "SOCLE_AGENT_ENGINE": json.dumps({"num_threads": 1}),  # several engines share these cores
            "SOCLE_TRUST_PASSPHRASE_FILE": str(self.directory / "online-passphrase"),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **ours}

    def _process(self, name: str, arguments: list[str]) -> Process:
        command = [sys.executable, *arguments]
        return Process(name, command, self._environment(), self.directory / "logs" / f"{name}.log")

    def _manage(self, *arguments: str, **environment: str) -> str:
        offline = self.directory / "offline-passphrase"
        if arguments[0] == "trust" and offline.exists():
            environment["SOCLE_TRUST_OFFLINE_PASSPHRASE"] = offline.read_text()
        return self._python("manage.py", *arguments, **environment)

    def _python(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**self._environment(), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"python {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def wait_for(
    condition: Callable[[], bool], what: str, *, timeout_s: float = 120.0, watch: Callable[[], None] = lambda: None
) -> None:
    """Poll until the condition holds; `watch` may raise when waiting is in vain."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        watch()
        if time.monotonic() > deadline:
            raise StackError(f"waited {timeout_s:.0f} s for {what}; look into the logs")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5.0).status_code == 200
    except httpx2.TransportError:
        return False
