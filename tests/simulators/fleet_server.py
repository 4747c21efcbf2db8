"""The fleet's side of `/device/v1/` in this process, on loopback, with faults to order.

Checks signatures, nonces and records as the real one does; keeps what devices send. `order` puts a fault before the
next request for a path that begins with a prefix.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_agent import protocol
from edge_agent.protocol import (
    DesiredState,
    DesiredStatement,
    DeviceReport,
    EnrolRequest,
    EnrolResponse,
    KeyRotation,
    ReleaseRef,
    SignedDesired,
    TelemetryBatch,
)
from engine.artifact import MANIFEST_NAME, AdapterManifest, parse_manifest, read_manifest
from engine.chunk_index import ChunkIndex, parse_index
from engine.strict_json import DecodeError, decode, encode
from engine.trust_documents import Policy, ReleaseTarget
from registry.chunking import index_bundle
from tests.simulators.tuf_repository import TufRepository, make_signer


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with this status instead."""

    status: int
    code: str = "ordered"
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Send this many bytes of the body, then drop the connection."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Slow:
    """Send the body in small pieces, with a pause after each."""

    pause_s: float
    piece_bytes: int = 64


@dataclass(frozen=True, slots=True)
class Hold:
    """Send nothing until the event is set."""

    release: threading.Event
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class WrongBytes:
    """Flip a bit of the body's byte at `position`, the last one by default."""

    position: int = -1


@dataclass(frozen=True, slots=True)
class WrongRange:
    """Answer a range with another one than was asked for."""


@dataclass(frozen=True, slots=True)
class NoRange:
    """Answer a range with the whole file."""


@dataclass(frozen=True, slots=True)
class Endless:
    """Send more bytes than the file has."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Do the work, then drop the connection instead of the answer."""


Fault = Status | Cut | Slow | Hold | WrongBytes | WrongRange | NoRange | Endless | Lost


class FleetServer:
    """A fleet with any number of devices that all want the same."""

    def __init__(self, *, root_threshold: int = 1, like: FleetServer | None = None) -> None:
        """`like`: another fleet, whose keys, releases and devices are this one's as well."""
        self.tokens = {"good-token"}
        self.devices: dict[str, Ed25519PublicKey] = dict(like.devices) if like else {}
        self.reports: list[DeviceReport] = []
        self.batches: dict[str, TelemetryBatch] = {}
        self.num_batches_received = 0
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and Range header of every request."""
        self.desired = DesiredState("", 0)
        self.trust = like.trust.copy() if like else TufRepository(root_threshold=root_threshold)
        self.desired_signer = like.desired_signer if like else make_signer()
        self.trust.set_policy(policy_of(self.desired_signer))
        self.valid_s = 3600
        """For how long a signed desired state is good."""
        self.hands_out_for = ""
        """Another device's id: its desired state is handed out to all."""
        self.poll_after_s = 0.05
        self._metadata: dict[str, bytes] = dict(like._metadata) if like else {}
        """What lies below /releases/: a manifest by its digest, an index as `<digest>/index`."""
        self._files: dict[str, bytes] = dict(like._files) if like else {}
        self._nonces: set[str] = set()
        self._enrolled: dict[tuple[str, str], str] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        """An enrolment token, which pins the first root."""
        return f"good-token.{hashlib.sha256(self.trust.root_bytes).hexdigest()}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        fleet = self
        self.is_away = False

        class Handler(_Handler):
            server_fleet = fleet

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Be away: connections are refused from now on, and those that are open get no answer any more."""
        assert self._server is not None
        self.is_away = True
        self._server.shutdown()
        self._server.server_close()

    def publish(self, name: str, version: str, bundle: Path) -> ReleaseRef:
        """Make a bundle a release."""
        manifest, digest = read_manifest(bundle)
        self._metadata[digest] = (bundle / MANIFEST_NAME).read_bytes()
        with TemporaryDirectory() as scratch:
            indexed = index_bundle(bundle, Path(scratch) / "objects")
            self._metadata[f"{digest}/index"] = indexed.path.read_bytes()
            self._files |= {sha256: path.read_bytes() for sha256, path in indexed.objects}
        for entry in manifest.files:
            self._files[entry.sha256] = (bundle / entry.path).read_bytes()
        base = manifest.base.digest if isinstance(manifest, AdapterManifest) else None
        self.trust.vouch_for(ReleaseTarget(manifest.kind, name, version, digest, indexed.sha256, base))
        return ReleaseRef(name, version, digest, sum(entry.size_bytes for entry in manifest.files))

    def index(self, release: ReleaseRef) -> ChunkIndex:
        """A release's index, as it was published."""
        manifest = parse_manifest(self._metadata[release.digest])
        return parse_index(self._metadata[f"{release.digest}/index"], release.digest, manifest)

    def spoil_index(self, release: ReleaseRef, spoil: Callable[[dict[str, Any]], None]) -> None:
        """Change the document of a release's index."""
        name = f"{release.digest}/index"
        document = json.loads(self._metadata[name])
        spoil(document)
        self._metadata[name] = json.dumps(document).encode()

    def spoil_file(self, sha256: str, position: int) -> None:
        """Flip a bit of a file for good."""
        content = bytearray(self._files[sha256])
        content[position] ^= 1
        self._files[sha256] = bytes(content)

    def publish_manifest(self, name: str, version: str, manifest: bytes) -> ReleaseRef:
        """Make a manifest a release whose files nobody has."""
        digest = hashlib.sha256(manifest).hexdigest()
        self._metadata[digest] = manifest
        base = self.desired.base.digest if self.desired.base else None
        self.trust.vouch_for(ReleaseTarget("adapter", name, version, digest, "0" * 64, base))
        return ReleaseRef(name, version, digest)

    def want(self, base: ReleaseRef | None, *adapters: ReleaseRef, **changes: Any) -> int:
        """Make this the desired state; returns its revision."""
        wanted = replace(self.desired, revision=self.desired.revision + 1, base=base, adapters=adapters)
        self.desired = replace(wanted, **changes)
        return self.desired.revision

    def order(self, path: str, *faults: Fault) -> None:
        """Before the next requests whose path begins like this, one fault each."""
        self._faults[path].extend(faults)

    def count(self, method: str, path: str) -> int:
        """Requests so far whose path begins like this."""
        return sum(m == method and p.startswith(path) for m, p, _ in self.requests)

    def fault_for(self, path: str) -> Fault | None:
        with self._lock:
            for prefix, faults in self._faults.items():
                if path.startswith(prefix) and faults:
                    return faults.popleft()
        return None

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the fleet says, faults aside."""
        if (method, path) == ("POST", "/enrol"):
            return self._enrol(body)
        if abs(time.time() - int(headers.get(protocol.HEADER_TIMESTAMP, "0"))) > protocol.MAX_CLOCK_SKEW_S:
            return problem(401, "clock_skew")
        device_id = self._authenticate(method, path, headers, body)
        if device_id is None:
            return problem(401, "bad_signature")
        if path.startswith("/trust/"):
            found = self.trust.files.get(unquote(path.removeprefix("/trust/")))
            return (200, {}, found) if found else problem(404, "no_such_metadata")
        if (method, path) == ("POST", "/key"):
            key = decode(KeyRotation, body).public_key
            self.devices[device_id] = Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
            return 204, {}, b""
        with self._lock:
            return self._answer_device(device_id, method, path, headers, body)

    def _answer_device(
        self, device_id: str, method: str, path: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        match method, path.split("/")[1:]:
            case "GET", ["desired"]:
                return self._desired(device_id, headers)
            case "GET", ["releases", *names] if "/".join(names) in self._metadata:
                return 200, {}, self._metadata["/".join(names)]
            case "GET", ["files", sha256] if sha256 in self._files:
                return self._file(self._files[sha256], headers)
            case "POST", ["report"]:
                self.reports.append(decode(DeviceReport, body))
                return 204, {}, b""
            case "POST", ["telemetry"]:
                return self._telemetry(body)
        return problem(404, "not_found")

    def _enrol(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Each token once, but again for a device that has lost the answer."""
        request = decode(EnrolRequest, body)
        known = self._enrolled.get((request.token, request.public_key))
        if known is None:
            if request.token not in self.tokens:
                return problem(403, "bad_token")
            known = self._enrolled[request.token, request.public_key] = f"dev_{len(self.devices):016x}"
            self.devices[known] = Ed25519PublicKey.from_public_bytes(base64.b64decode(request.public_key))
            self.tokens.discard(request.token)
        return 201, {}, encode(EnrolResponse(known, self.poll_after_s, self.trust.root_bytes.decode()))

    def _authenticate(self, method: str, path: str, headers: Any, body: bytes) -> str | None:
        device_id, nonce = headers.get(protocol.HEADER_DEVICE, ""), headers.get(protocol.HEADER_NONCE, "")
        signed = protocol.signing_input(
            device_id=device_id,
            method=method,
            target=protocol.API_PREFIX + path,
            timestamp_s=int(headers.get(protocol.HEADER_TIMESTAMP, "0")),
            nonce=nonce,
            body=body,
        )
        if device_id not in self.devices or nonce in self._nonces:
            return None
        self._nonces.add(nonce)
        try:
            self.devices[device_id].verify(base64.b64decode(headers[protocol.HEADER_SIGNATURE]), signed)
        except (InvalidSignature, KeyError):
            return None
        return device_id

    def _desired(self, device_id: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        etag = f'"{self.desired.revision}"'
        sent = {"ETag": etag, protocol.HEADER_POLL_AFTER: str(self.poll_after_s)}
        if headers.get("If-None-Match") == etag:
            return 304, sent, b""
        return 200, sent, self.sign_desired(replace(self.desired, device_id=self.hands_out_for or device_id))

    def sign_desired(self, desired: DesiredState) -> bytes:
        """As the fleet hands it out; a test may hand out another one."""
        now_s = int(time.time())
        text = encode(DesiredStatement(desired, now_s, now_s + self.valid_s)).decode()
        signature = bytes.fromhex(self.desired_signer.sign(protocol.desired_signing_input(text)).signature)
        keyid = self.desired_signer.public_key.keyid
        return encode(SignedDesired(text, keyid, base64.b64encode(signature).decode()))

    def _file(self, content: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range") or "")
        if not found:
            return 200, {}, content
        start, last = map(int, found.groups())
        return 206, {"Content-Range": f"bytes {start}-{last}/{len(content)}"}, content[start : last + 1]

    def _telemetry(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        batch = decode(TelemetryBatch, gzip.decompress(body))
        self.num_batches_received += 1
        known = self.batches.setdefault(batch.batch_id, batch)
        return (204, {}, b"") if known == batch else problem(409, "other_content")


def policy_of(*signers: Any, **more: Any) -> Policy:
    """A policy under which these keys sign desired states."""
    raw = {s.public_key.keyid: bytes.fromhex(s.public_key.keyval["public"]) for s in signers}
    return Policy({keyid: base64.b64encode(key).decode() for keyid, key in raw.items()}, **more)


def problem(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    """A problem document."""
    return status, {}, json.dumps({"code": code, "detail": f"the simulator says {code}"}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the plan; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_fleet: FleetServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server_fleet.is_away:
            self.close_connection = True
            return
        path = self.path.removeprefix(protocol.API_PREFIX)
        self.server_fleet.requests.append((method, path, self.headers.get("Range")))
        fault = self.server_fleet.fault_for(path)
        try:
            if isinstance(fault, Status):
                self._send(*problem(fault.status, fault.code), retry_after=fault.retry_after)
            else:
                self._send_faulty(fault, *self._answer(fault, method, path, body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, fault: Fault | None, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers: Any = self.headers
        if isinstance(fault, NoRange):
            headers = {k: v for k, v in self.headers.items() if k != "Range"}
        try:
            return self.server_fleet.answer(method, path, headers, body)
        except DecodeError:
            return problem(400, "bad_body")

    def _send_faulty(self, fault: Fault | None, status: int, headers: dict[str, str], body: bytes) -> None:
        match fault:
            case Lost():
                self.close_connection = True
            case Hold():
                fault.reached.set()
                fault.release.wait(30)
                self._send(status, headers, body)
            case Cut():
                self._head(status, headers, len(body))
                self.wfile.write(body[: fault.after_bytes])
                self.close_connection = True
            case Slow():
                self._head(status, headers, len(body))
                for start in range(0, len(body), fault.piece_bytes):
                    self.wfile.write(body[start : start + fault.piece_bytes])
                    time.sleep(fault.pause_s)
            case WrongBytes():
                spoilt = bytearray(body)
                spoilt[fault.position] ^= 1
                self._send(status, headers, bytes(spoilt))
            case WrongRange():
                self._send(206, headers | {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"}, body)
            case Endless():
                self._send(status, headers, body + body)
            case _:
                self._send(status, headers, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes, retry_after: str | None = None) -> None:
        self._head(status, headers | ({"Retry-After": retry_after} if retry_after else {}), len(body))
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], size_bytes: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(size_bytes))
        self.end_headers()
