"""Desired states as devices get them: signed, for one device, for a time.

Signed when they are asked for, so that they are never stale in the database. Within half of the validity the answer
is the same bytes under the same ETag; a device that polls always holds one that is good for half of it at least.
"""

import base64
import time
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from securesystemslib.signer import CryptoSigner

from edge_agent import protocol
from engine.strict_json import decode, encode
from fleet.device_api.errors import TrustNotReadyError
from fleet.devices.models import DesiredRecord
from registry.errors import RegistryError
from registry.trust.ceremony import desired_signer

_KEY_IS_LOOKED_UP_EVERY_S = 5


@dataclass(frozen=True, slots=True)
class Statement:
    """The answer to a poll, and its ETag."""

    etag: str
    record: DesiredRecord
    signer: CryptoSigner
    issued_at_s: int
    expires_at_s: int

    def body(self) -> bytes:
        """The signed document."""
        desired = decode(protocol.DesiredState, bytes(self.record.document))
        statement = protocol.DesiredStatement(desired, self.issued_at_s, self.expires_at_s)
        text = encode(statement, omits_empty=True).decode()
        signature = bytes.fromhex(self.signer.sign(protocol.desired_signing_input(text)).signature)
        keyid = self.signer.public_key.keyid
        return encode(protocol.SignedDesired(text, keyid, base64.b64encode(signature).decode()))


def statement_for(record: DesiredRecord) -> Statement:
    """What this device shall be told now; raises `TrustNotReadyError`."""
    now_s = time.time()
    signer = _signer(str(settings.SOCLE_TRUST_KEY_DIR), int(now_s / _KEY_IS_LOOKED_UP_EVERY_S))
    half_s = settings.SOCLE_DESIRED_VALID_S / 2
    period = int(now_s / half_s)
    etag = f'"{record.etag.strip(chr(34))}-{signer.public_key.keyid[:8]}-{period}"'
    return Statement(etag, record, signer, int(period * half_s), int((period + 2) * half_s) + 1)


@lru_cache(maxsize=1)
def _signer(_key_dir: str, _moment: int) -> CryptoSigner:
    try:
        return desired_signer()
    except RegistryError as error:
        raise TrustNotReadyError(f"Desired states can't be signed: {error.detail}.", hint=error.hint) from error
