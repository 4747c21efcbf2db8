"""Bytes of files: what the client says to servers and proxies that are not as they should be, and how it is stopped."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edge_agent.download import Download
from edge_agent.errors import RefusedError, TransientError, UnavailableError, UnreachableError
from edge_agent.file_client import FileClient
from edge_agent.gate import Gate
from edge_agent.landing import Landing
from edge_agent.part_file import PartFile
from edge_agent.patience import FetchPolicy, Floor, Pace
from edge_agent.trust import DeviceKey
from engine.chunk_index import Chunk, IndexedFile

SHA256 = "ab" * 32


@pytest.fixture
def open_file(tmp_path: Path):
    signer = DeviceKey.open_or_make(tmp_path / "key").signer("d-1")

    def read(server: str, **options) -> bytes:
        files = FileClient(server, signer, timeout_s=0.5, **options)
        with files.open(SHA256, start=0, stop=4, size_bytes=4) as stream:
            return stream.read()

    return read


class Recorder(BaseHTTPRequestHandler):
    """Answers everything with four bytes, and keeps what was asked."""

    def do_GET(self) -> None:
        self.server.heard.append((self.path, self.headers))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"data")

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    server.heard, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_is_asked_instead_with_its_user(open_file, recorder: HTTPServer) -> None:
    proxy = f"http://me:secret@127.0.0.1:{recorder.server_port}"
    assert open_file("http://fleet.invalid/below", proxy=proxy) == b"data"
    ((url, headers),) = recorder.heard
    assert url == f"http://fleet.invalid/below/device/v1/files/{SHA256}"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


def test_environment_names_no_proxy(open_file, recorder: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert open_file(f"http://127.0.0.1:{recorder.server_port}") == b"data"


def test_a_redirection_is_not_followed(open_file, recorder: HTTPServer) -> None:
    recorder.status = 302
    with pytest.raises(RefusedError) as caught:
        open_file(f"http://127.0.0.1:{recorder.server_port}")
    assert caught.value.code == "http_302"


def test_a_server_without_tls_behind_https_is_named(open_file, recorder: HTTPServer) -> None:
    with pytest.raises(UnreachableError, match="did not answer"):
        open_file(f"https://127.0.0.1:{recorder.server_port}")
    assert recorder.heard == []


def test_nobody_there_is_named(open_file) -> None:
    with pytest.raises(UnreachableError, match="look at the network and at the server"):
        open_file("http://127.0.0.1:1")


def test_silence_ends(open_file) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute, pytest.raises(UnreachableError):
        open_file(f"http://127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.anyio
async def test_a_download_that_waits_for_an_answer_can_be_cancelled(tmp_path: Path) -> None:
    """Nothing wakes its thread, so it is left behind, and no byte that comes later is written."""
    file = IndexedFile("weights", 4, SHA256, SHA256, (Chunk(SHA256, 4),))
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        with PartFile(tmp_path / "part", file) as part:
            signer = DeviceKey.open_or_make(tmp_path / "key").signer("d-1")
            files = FileClient(f"http://127.0.0.1:{mute.getsockname()[1]}", signer, timeout_s=60.0)
            landing = Landing(part, list(file.placed()), print)
            download = Download(files, file, landing, Pace(None), Floor(FetchPolicy(), "weights"), Gate())
            task = asyncio.create_task(download.run())
            connection, _ = await asyncio.to_thread(mute.accept)
            task.cancel()
            async with asyncio.timeout(30.0):
                with pytest.raises(asyncio.CancelledError):
                    await task
        with closing(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndata")
    assert (tmp_path / "part").read_bytes() == bytes(4)


@pytest.mark.anyio
async def test_an_answer_whose_head_drips_is_given_up(tmp_path: Path) -> None:
    """Each byte comes in time, so that no time-out of a socket ends it."""
    file = IndexedFile("weights", 4, SHA256, SHA256, (Chunk(SHA256, 4),))
    is_over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server, PartFile(tmp_path / "part", file) as part:

        def drip() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                while not is_over.wait(0.02):
                    connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        signer = DeviceKey.open_or_make(tmp_path / "key").signer("d-1")
        files = FileClient(f"http://127.0.0.1:{server.getsockname()[1]}", signer, timeout_s=60.0)
        landing, floor = Landing(part, list(file.placed()), print), Floor(FetchPolicy(grace_s=0.2), "weights")
        async with asyncio.timeout(30.0):
            with pytest.raises(UnavailableError) as caught:
                await Download(files, file, landing, Pace(None), floor, Gate()).run()
        assert caught.value.code == "too_slow"
        is_over.set()
        await asyncio.to_thread(dripping.join)


def test_more_than_one_range_in_an_answer_is_no_answer(open_file, recorder: HTTPServer) -> None:
    recorder.status = 206
    with pytest.raises(UnavailableError) as caught:
        open_file(f"http://127.0.0.1:{recorder.server_port}")
    assert caught.value.code == "wrong_range"
    assert isinstance(caught.value, TransientError)
