"""The conformance client as tuf-conformance drives it: commands, exit codes, files. A subset of that suite."""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.trust_documents import ReleaseTarget, release_path
from tests.simulators.tuf_repository import TufRepository, in_days

CLIENT = Path(__file__).resolve().parents[2] / "deploy" / "conformance" / "client"
TARGET = ReleaseTarget("adapter", "home", "1.0.0", "a" * 64, "c" * 64, "b" * 64)
PATH = release_path(TARGET.name, TARGET.digest)


class Suite:
    """Serves a repository from a directory and runs the client on it."""

    def __init__(self, directory: Path, url: str) -> None:
        self.repository = TufRepository()
        self.repository.vouch_for(TARGET)
        self.directory = directory
        self.metadata, self.targets = directory / "trusted", directory / "downloads"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.url = url

    def client(self, command: str, *more: str) -> int:
        for path, data in self.repository.files.items():
            file = self.directory / "served" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        line = [str(CLIENT), "--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata"]
        line += ["--target-dir", str(self.targets), "--target-base-url", f"{self.url}/targets"]
        return subprocess.run([*line, "--target-name", PATH, command, *more], check=False, timeout=60).returncode

    def init(self) -> int:
        root = self.directory / "initial_root.json"
        root.write_bytes(self.repository.root_bytes)
        return self.client("init", str(root))


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    served = tmp_path / "served"
    served.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield Suite(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()


def test_a_good_repository_is_followed(suite: Suite) -> None:
    assert suite.init() == 0
    assert suite.client("download") == 0
    assert {path.name for path in suite.metadata.glob("*.json")} == {
        "root.json", "timestamp.json", "snapshot.json", "targets.json", "publisher.json"
    }  # fmt: skip
    assert [path.read_bytes() for path in suite.targets.iterdir()] == [suite.repository.contents[PATH]]
    suite.repository.replace_keys("timestamp")
    suite.repository.rotate_root()
    suite.repository.publish()
    assert suite.client("refresh") == 0
    assert (suite.metadata / "root.json").read_bytes() == suite.repository.files["metadata/2.root.json"]


def expire(repository: TufRepository) -> None:
    repository.timestamp.expires = in_days(-1)
    repository.publish_timestamp()


def forge(repository: TufRepository) -> None:
    repository.signers["targets"] = [repository.signers["timestamp"][0]]
    repository.publish()


def roll_back(repository: TufRepository) -> None:
    repository.timestamp.version = 0
    repository.publish_timestamp()


@pytest.mark.parametrize("attack", [expire, forge, roll_back])
def test_a_bad_repository_is_refused(suite: Suite, attack: Callable[[TufRepository], None]) -> None:
    assert suite.init() == suite.client("refresh") == 0
    attack(suite.repository)
    assert suite.client("refresh") == 1
