"""A device as the fleet sees it: keys, signatures, reports. Speaks HTTP through Django's test client."""

from __future__ import annotations

import base64
import gzip
import secrets
import time
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client

from edge_agent import protocol
from engine.strict_json import decode, encode

HARDWARE = protocol.Hardware(machine="x86_64", cpu_count=4, memory_bytes=8 << 30)


class DeviceSimulator:
    """One device; `device_id` is empty until it is enrolled."""

    def __init__(self, name: str = "simulated") -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()
        self.device_id = ""
        self.http = Client()

    @property
    def public_key(self) -> str:
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    def enrol(self, token: str, **changes: Any) -> Any:
        token, _, pin = token.partition(".")
        request = protocol.EnrolRequest(token, self.name, self.public_key, "0.1.0", HARDWARE, root_sha256=pin)
        response = self.http.post(
            "/device/v1/enrol", encode(replace(request, **changes)), content_type="application/json"
        )
        if response.status_code == 201:
            self.device_id = response.json()["device_id"]
        return response

    def signature(self, method: str, target: str, body: bytes = b"", **overrides: Any) -> dict[str, str]:
        """Headers of a signed request; overrides: device_id, timestamp_s, nonce, signed_body, key."""
        device_id = overrides.get("device_id", self.device_id)
        timestamp_s = overrides.get("timestamp_s", int(time.time()))
        nonce = overrides.get("nonce", secrets.token_hex(16))
        signed = protocol.signing_input(
            device_id=device_id,
            method=method,
            target=target,
            timestamp_s=timestamp_s,
            nonce=nonce,
            body=overrides.get("signed_body", body),
        )
        signature = base64.b64encode(overrides.get("key", self.key).sign(signed)).decode()
        return {
            protocol.HEADER_DEVICE: device_id,
            protocol.HEADER_TIMESTAMP: str(timestamp_s),
            protocol.HEADER_NONCE: nonce,
            protocol.HEADER_SIGNATURE: signature,
        }

    def call(self, method: str, path: str, body: bytes = b"", *, headers: Any = None, **overrides: Any) -> Any:
        target = f"/device/v1/{path}"
        signed = self.signature(method, target, body, **overrides)
        return self.http.generic(
            method, target, body, content_type="application/json", headers={**signed, **(headers or {})}
        )

    def desired(self) -> protocol.DesiredState:
        response = self.call("GET", "desired")
        assert response.status_code == 200, response.content
        return self.read(response).desired

    def read(self, response: Any) -> protocol.DesiredStatement:
        """The statement in the answer to a poll, its signature left aside."""
        return decode(protocol.DesiredStatement, decode(protocol.SignedDesired, response.content).statement.encode())

    def report_of(self, state: str, **fields: Any) -> protocol.DeviceReport:
        known = {"revision": 0, "target_revision": 0} | fields
        return protocol.DeviceReport(
            device_id=self.device_id,
            state=protocol.UpdateState(state),
            agent_version="0.1.0",
            hardware=HARDWARE,
            sent_at_s=time.time(),
            **known,
        )

    def report(self, state: str, **fields: Any) -> Any:
        return self.call("POST", "report", encode(self.report_of(state, **fields)))

    def works_on(self, wanted: protocol.DesiredState) -> Any:
        return self.report("downloading", target_revision=wanted.revision)

    def commits(self, wanted: protocol.DesiredState) -> Any:
        return self.report(
            "committed",
            revision=wanted.revision,
            target_revision=wanted.revision,
            base=wanted.base,
            adapters=wanted.adapters,
        )

    def fails(self, wanted: protocol.DesiredState, code: str = "probe_failed") -> Any:
        problem = protocol.Problem(code, "The answers are not the golden ones.", {"prompt": "1"})
        return self.report("failed", target_revision=wanted.revision, problem=problem)

    def send_batch(self, batch: protocol.TelemetryBatch, *, packed: bool = True) -> Any:
        body = gzip.compress(encode(batch)) if packed else encode(batch)
        return self.call("POST", "telemetry", body, headers={"Content-Encoding": "gzip"} if packed else {})
