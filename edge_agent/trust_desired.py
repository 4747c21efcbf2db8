"""Whether a desired state is meant for this device, now, by somebody whom the policy names.

What Uptane calls the director's part: a server may only hand out sets that a key of the policy has signed for this very
device, none older than one it has heard. Knows nothing of polling, and nothing of what becomes of a set.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_agent.errors import UntrustedError, disk_error
from edge_agent.journal import replace_file
from edge_agent.protocol import DesiredState, DesiredStatement, SignedDesired, desired_signing_input
from edge_agent.trust_metadata import TrustedMetadata
from engine.strict_json import DecodeError, decode, encode

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Heard:
    """The newest revision that was believed, and the key that vouched for it. Kept in a file."""

    revision: int = 0
    keyid: str = ""


class DesiredVerifier:
    """Opens signed desired states for one device."""

    def __init__(self, trusted: TrustedMetadata, device_id: str, path: Path) -> None:
        """`path`: the file that remembers what was heard last."""
        self._trusted = trusted
        self._device_id = device_id
        self._path = path
        self._heard = _read_heard(path)
        self._expires_at_s: int | None = None

    async def open(self, signed: SignedDesired) -> DesiredState:
        """What the fleet wants of this device; raises `UntrustedError`, and `DiskError` if it can't be remembered."""
        keys = await self._keys(signed.keyid)
        statement = _read(signed, keys[signed.keyid])
        if statement.desired.device_id != self._device_id:
            raise UntrustedError(
                f"the server sent the desired state of {statement.desired.device_id!r:.40}: look for an intruder on "
                "the server or between",
                code="desired_of_another_device",
            )
        self._check_time(statement.expires_at_s)
        self._check_revision(statement.desired.revision, keys)
        self._remember(_Heard(statement.desired.revision, signed.keyid))
        self._expires_at_s = statement.expires_at_s
        return statement.desired

    def check_unchanged(self) -> None:
        """The server says that nothing has changed; that is not to be believed for longer than what it signed last."""
        if self._expires_at_s is not None:
            self._check_time(self._expires_at_s)

    async def _keys(self, keyid: str) -> Mapping[str, str]:
        """The policy's keys; metadata is refreshed once for one that is not among them, since keys rotate."""
        keys = (await self._trusted.policy()).desired_keys
        if keyid not in keys:
            await self._trusted.refresh()
            keys = (await self._trusted.policy()).desired_keys
        if keyid not in keys:
            raise _forged(f"the policy knows no key {keyid[:16]!r}")
        return keys

    def _check_revision(self, revision: int, keys: Mapping[str, str]) -> None:
        """Revisions only grow, while the key of the newest is good.

        Once it is not any more, they may begin anew: a thief of the key may have signed one so high that no honest one
        would ever follow.
        """
        if revision < self._heard.revision and self._heard.keyid in keys:
            raise UntrustedError(
                f"the server sent revision {revision} after revision {self._heard.revision}: an old one is being "
                "replayed, or the server's database was restored; if it was, or if the key was stolen, "
                "`manage.py trust rotate desired` lets devices follow again",
                code="desired_rollback",
            )

    def _remember(self, heard: _Heard) -> None:
        if heard != self._heard:
            try:
                replace_file(self._path, encode(heard))
            except OSError as error:
                raise disk_error(error) from error
            self._heard = heard

    def _check_time(self, expires_at_s: int) -> None:
        late_s = time.time() - expires_at_s
        if late_s > 0:
            raise UntrustedError(
                f"the newest desired state expired {late_s:.0f} s ago: an old one is being replayed, or this device's "
                "clock is wrong",
                code="desired_expired",
            )


def _read_heard(path: Path) -> _Heard:
    try:
        return decode(_Heard, path.read_bytes())
    except FileNotFoundError:
        return _Heard()
    except (OSError, DecodeError) as error:
        log.warning("desired.memory_damaged", path=str(path), error=str(error))
        return _Heard()


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
