"""Proof that a request comes from an enrolled device: an Ed25519 signature over all that matters, once.

A nonce is remembered for as long as its timestamp passes. Where a repeat could change something (POST) it goes into
the database, which all processes share and which survives a restart. A repeated read gives an eavesdropper what they
saw already, and downloads must not write: those nonces are kept in the cache.
"""

import base64
import binascii
import re
import time
from dataclasses import dataclass
from datetime import timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.core.cache import cache
from django.http import HttpRequest

from edge_agent import protocol
from fleet.audit.chain import Proof
from fleet.device_api.errors import UnauthorisedDeviceError
from fleet.devices.actions import remember_nonce
from fleet.devices.errors import DeviceRevokedError
from fleet.devices.models import Device, DeviceState

_NONCE = re.compile(r"[0-9a-f]{32}")
_DEVICE_ID = re.compile(r"dev_[0-9a-f]{16}")
_TIMESTAMP = re.compile(r"\d{1,12}")
_NONCE_LASTS_S = 2 * protocol.MAX_CLOCK_SKEW_S
_READS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class _Claim:
    """The headers of a request that says it is signed; well formed, not yet believed."""

    device_id: str
    timestamp_s: int
    nonce: str
    signature: bytes


def authenticate(request: HttpRequest) -> Device:
    """The device that signed this request, with its desired record; raises a 401 or `DeviceRevokedError`."""
    claim = _read_claim(request)
    _check_clock(claim)
    device = Device.objects.select_related("desired").filter(pk=claim.device_id).first()
    if device is None:
        raise UnauthorisedDeviceError(
            "unknown_device", "No device has this id.", hint="Enrol the device with a new token."
        )
    _check_signature(request, claim, device)
    if device.state == DeviceState.REVOKED:
        raise DeviceRevokedError(f"The device {device.pk} was revoked.")
    _check_nonce(request, claim)
    return device


def proof_of(request: HttpRequest, device: Device) -> Proof:
    """What `authenticate` has verified, to be kept. The body must be JSON as it travelled."""
    claim = _read_claim(request)
    return Proof(
        device_id=device.pk,
        public_key=device.public_key,
        target=request.get_full_path(),
        timestamp_s=claim.timestamp_s,
        nonce=claim.nonce,
        signature=base64.b64encode(claim.signature).decode(),
        body=request.body.decode(errors="replace"),
    )


def decode_public_key(text: str) -> str | None:
    """The key in the one spelling that we store; None unless it is a raw Ed25519 key in base64."""
    try:
        raw = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error):
        return None
    return base64.b64encode(raw).decode()


def proves_possession(rotation: protocol.KeyRotation) -> bool:
    """Whether the new key has signed for itself; without that a device could claim another's key."""
    signed = protocol.rotation_signing_input(device_id=rotation.device_id, public_key=rotation.public_key)
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(rotation.public_key, validate=True))
        key.verify(base64.b64decode(rotation.proof, validate=True), signed)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _read_claim(request: HttpRequest) -> _Claim:
    device_id = request.headers.get(protocol.HEADER_DEVICE, "")
    timestamp = request.headers.get(protocol.HEADER_TIMESTAMP, "")
    nonce = request.headers.get(protocol.HEADER_NONCE, "")
    try:
        signature = base64.b64decode(request.headers.get(protocol.HEADER_SIGNATURE, ""), validate=True)
    except (ValueError, binascii.Error):
        signature = b""
    well_formed = _DEVICE_ID.fullmatch(device_id) and _TIMESTAMP.fullmatch(timestamp) and _NONCE.fullmatch(nonce)
    if not (well_formed and timestamp.isascii() and len(signature) == 64):
        raise UnauthorisedDeviceError(
            "unsigned_request",
            "The request lacks well-formed signature headers.",
            hint=f"Send {protocol.HEADER_DEVICE}, {protocol.HEADER_TIMESTAMP}, {protocol.HEADER_NONCE} and "
            f"{protocol.HEADER_SIGNATURE} as edge_agent/protocol.py says.",
        )
    return _Claim(device_id, int(timestamp), nonce, signature)


def _check_clock(claim: _Claim) -> None:
    off_s = claim.timestamp_s - int(time.time())
    if abs(off_s) > protocol.MAX_CLOCK_SKEW_S:
        raise UnauthorisedDeviceError(
            "clock_skew",
            f"The request's clock is {off_s:+d} s off; at most {protocol.MAX_CLOCK_SKEW_S} s are allowed.",
            hint="Set the device's clock, for instance by NTP; this answer's Date header has the server's time.",
        )


def _check_signature(request: HttpRequest, claim: _Claim, device: Device) -> None:
    signed = protocol.signing_input(
        device_id=claim.device_id,
        method=request.method or "",
        target=request.get_full_path(),
        timestamp_s=claim.timestamp_s,
        nonce=claim.nonce,
        body=request.body,
    )
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(device.public_key)).verify(claim.signature, signed)
    except InvalidSignature as error:
        raise UnauthorisedDeviceError(
            "bad_signature",
            "The signature does not fit the request.",
            hint="Sign exactly the bytes, path and query that are sent; a proxy must not change them.",
        ) from error


def _check_nonce(request: HttpRequest, claim: _Claim) -> None:
    if request.method in _READS:
        is_new = cache.add(f"nonce:{claim.device_id}:{claim.nonce}", 1, timeout=_NONCE_LASTS_S)
    else:
        lasts = timedelta(seconds=_NONCE_LASTS_S)
        is_new = remember_nonce(device_id=claim.device_id, nonce=claim.nonce, lasts=lasts)
    if not is_new:
        raise UnauthorisedDeviceError(
            "replayed_request", "The nonce was used before.", hint="Sign each request anew with a fresh nonce."
        )
