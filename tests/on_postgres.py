"""`./dev postgres [pytest ...]`: the server's tests on a PostgreSQL that is made for them and thrown away."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SUITES = ("tests/fleet", "tests/registry")


def main(arguments: Sequence[str]) -> int:
    """Run pytest; its exit code. Databases are not dropped one by one: threads of a test may still be connected."""
    with postgres() as url:
        command = [sys.executable, "-m", "pytest", "-n", "2", "--reuse-db", *(arguments or SUITES)]
        return subprocess.run(command, env={**os.environ, "SOCLE_DATABASE_URL": url}, check=False).returncode


@contextmanager
def postgres() -> Iterator[str]:
    """A server on a free port of loopback, as the URL of a database on it."""
    with TemporaryDirectory(prefix="socle-postgres-") as temporary:
        directory = Path(temporary)
        run = _Server(directory)
        run("initdb", "--auth=trust", "--username=socle", f"--pgdata={directory / 'data'}")
        port = _free_port()
        # Nothing of it must outlive a power loss, so it need not wait for the disk.
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory} -c fsync=off"
        data = f"--pgdata={directory / 'data'}"
        run("pg_ctl", data, "--wait", f"--log={directory / 'log'}", f"--options={options}", "start")
        try:
            yield f"postgres://socle@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", data, "--wait", "--mode=immediate", "stop")


class _Server:
    """Calls PostgreSQL's programs, which refuse to be root, as its own user then."""

    def __init__(self, directory: Path) -> None:
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        self._directory = directory

    def __call__(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(name), *arguments],
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name} has failed: {done.stderr.strip()}")


def _program(name: str) -> str:
    """Debian keeps them out of the way, the newest version last."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    if program := (str(found[-1]) if found else shutil.which(name)):
        return program
    raise SystemExit(f"there is no {name}: install PostgreSQL's server (Debian: postgresql)")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
