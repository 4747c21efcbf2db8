"""The device's key and identity: an Ed25519 key made here, which never leaves the device, and the id the fleet gave it.

Signs requests as `protocol.signing_input` says. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edge_agent import protocol
from edge_agent.errors import NotEnrolledError
from edge_agent.journal import replace_file
from engine.strict_json import DecodeError, decode, encode


class Signer(Protocol):
    """Proves who sends a request."""

    def headers(self, method: str, target: str, body: bytes) -> Mapping[str, str]:
        """The headers that go with a request."""

    def set_clock(self, now_s: float) -> None:
        """Go by another clock than the device's from now on."""


class Unsigned:
    """For the one request that a device makes before it has an identity."""

    def headers(self, _method: str, _target: str, _body: bytes) -> Mapping[str, str]:
        """None."""
        return {}

    def set_clock(self, now_s: float) -> None:
        """Nothing here depends on a clock."""


class DeviceSigner:
    """Signs requests in the name of a device."""

    def __init__(self, private: Ed25519PrivateKey, device_id: str) -> None:
        self._private = private
        self._device_id = device_id
        self._offset_s = 0.0

    def headers(self, method: str, target: str, body: bytes) -> Mapping[str, str]:
        """See `protocol.signing_input`."""
        timestamp_s, nonce = int(time.time() + self._offset_s), secrets.token_hex(16)
        signed = protocol.signing_input(
            device_id=self._device_id, method=method, target=target, timestamp_s=timestamp_s, nonce=nonce, body=body
        )
        return {
            protocol.HEADER_DEVICE: self._device_id,
            protocol.HEADER_TIMESTAMP: str(timestamp_s),
            protocol.HEADER_NONCE: nonce,
            protocol.HEADER_SIGNATURE: base64.b64encode(self._private.sign(signed)).decode(),
        }

    def set_clock(self, now_s: float) -> None:
        """A device without a battery for its clock signs by the server's."""
        self._offset_s = now_s - time.time()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the device is, and to whom. Kept in `identity.json`."""

    device_id: str
    name: str
    server: str
    poll_interval_s: float


class DeviceKey:
    """An Ed25519 private key in a file that only its owner can read."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def open_or_make(cls, path: Path) -> DeviceKey:
        """The key in this file; a new one if there is no file."""
        if not path.exists():
            fresh = Ed25519PrivateKey.generate()
            replace_file(path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise NotEnrolledError(
                f"{path} can't be read as a device key ({error}): remove it and identity.json, and enrol again"
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise NotEnrolledError(f"{path} is no Ed25519 key: remove it and identity.json, and enrol again")
        return cls(private)

    def public_base64(self) -> str:
        """The raw public key, as `protocol.EnrolRequest` wants it."""
        return base64.b64encode(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def proof_of_possession(self, device_id: str) -> str:
        """This key's word that it is the device's, as `protocol.KeyRotation` wants it."""
        signed = protocol.rotation_signing_input(device_id=device_id, public_key=self.public_base64())
        return base64.b64encode(self._private.sign(signed)).decode()

    def signer(self, device_id: str) -> DeviceSigner:
        """Signs requests in the name of a device."""
        return DeviceSigner(self._private, device_id)


def read_identity(path: Path) -> Identity | None:
    """The stored identity; None if the device is not enrolled."""
    try:
        return decode(Identity, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DecodeError) as error:
        raise NotEnrolledError(f"{path} is damaged ({error}): remove it and enrol again") from error


def write_identity(path: Path, identity: Identity) -> None:
    """Keep the identity for the next start."""
    replace_file(path, encode(identity), mode=0o600)
