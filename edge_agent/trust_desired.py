"""Whether a desired state is meant for this device, now, by somebody whom the policy names.

What Uptane calls the director's part: a server may only hand out sets that a key of the policy has signed for this very
device. Knows nothing of polling; older revisions than the updater's are found by the updater.
"""

from __future__ import annotations

import base64
import binascii
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_agent.errors import UntrustedError
from edge_agent.protocol import DesiredState, DesiredStatement, SignedDesired, desired_signing_input
from edge_agent.trust_metadata import TrustedMetadata
from engine.strict_json import DecodeError, decode


class DesiredVerifier:
    """Opens signed desired states for one device."""

    def __init__(self, trusted: TrustedMetadata, device_id: str) -> None:
        self._trusted = trusted
        self._device_id = device_id
        self._expires_at_s: int | None = None

    async def open(self, signed: SignedDesired) -> DesiredState:
        """What the fleet wants of this device; raises `UntrustedError`."""
        statement = _read(signed, await self._key(signed.keyid))
        if statement.desired.device_id != self._device_id:
            raise UntrustedError(
                f"the server sent the desired state of {statement.desired.device_id!r:.40}: look for an intruder on "
                "the server or between",
                code="desired_of_another_device",
            )
        self._check_time(statement.expires_at_s)
        self._expires_at_s = statement.expires_at_s
        return statement.desired

    def check_unchanged(self) -> None:
        """The server says that nothing has changed; that is not to be believed for longer than what it signed last."""
        if self._expires_at_s is not None:
            self._check_time(self._expires_at_s)

    async def _key(self, keyid: str) -> str:
        """The policy's key; metadata is refreshed once for one that is not known, since keys rotate."""
        key = (await self._trusted.policy()).desired_keys.get(keyid)
        if key is None:
            await self._trusted.refresh()
            key = (await self._trusted.policy()).desired_keys.get(keyid)
        if key is None:
            raise _forged(f"the policy knows no key {keyid[:16]!r}")
        return key

    def _check_time(self, expires_at_s: int) -> None:
        late_s = time.time() - expires_at_s
        if late_s > 0:
            raise UntrustedError(
                f"the newest desired state expired {late_s:.0f} s ago: an old one is being replayed, or this device's "
                "clock is wrong",
                code="desired_expired",
            )


def _read(signed: SignedDesired, key: str) -> DesiredStatement:
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
        public.verify(base64.b64decode(signed.signature, validate=True), desired_signing_input(signed.statement))
    except (InvalidSignature, ValueError, binascii.Error) as error:
        raise _forged("its signature does not fit") from error
    try:
        return decode(DesiredStatement, signed.statement.encode())
    except DecodeError as error:
        raise UntrustedError(f"the signed desired state can't be read ({error}): update the agent") from error


def _forged(why: str) -> UntrustedError:
    return UntrustedError(
        f"the desired state is refused, {why}: look for an intruder on the server or between, and whether its keys are "
        "those of `manage.py trust status`",
        code="desired_not_signed",
    )
