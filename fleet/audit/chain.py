"""Adding to the audit chain, and checking it.

An intruder with the database can write a whole new chain; whoever has noted the head's hash elsewhere sees it. Entries
of reports carry the device's own signature, which no intruder on the server can make.
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import transaction
from django.utils import timezone

from edge_agent.protocol import signing_input
from engine.strict_json import canonical_json
from fleet.audit.models import AuditEntry, AuditHead

REPORTED = "reported"
"""The kind of entries that hold a device's signed report."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A signed request, kept so that anybody can verify it later."""

    device_id: str
    public_key: str
    target: str
    timestamp_s: int
    nonce: str
    signature: str
    body: str


@dataclass(frozen=True, slots=True)
class Break:
    """The first entry that is not what it was, and why."""

    number: int
    reason: str


@transaction.atomic
def append(*, actor: str, kind: str, detail: dict[str, Any]) -> AuditEntry:
    """Add an entry, in the transaction of what it tells of."""
    AuditHead.objects.get_or_create(pk=1)
    head = AuditHead.objects.select_for_update().get(pk=1)
    entry = AuditEntry(
        number=head.number + 1,
        at=timezone.now(),
        actor=actor,
        kind=kind,
        detail=detail,
        previous_hash=head.hash,
    )
    entry.hash = hash_of(entry)
    entry.save(force_insert=True)
    AuditHead.objects.filter(pk=1).update(number=entry.number, hash=entry.hash)
    return entry


def hash_of(entry: AuditEntry) -> str:
    """SHA-256 over everything in the entry but its own hash."""
    said = [
        entry.number,
        entry.at.astimezone(UTC).isoformat(),
        entry.actor,
        entry.kind,
        entry.detail,
        entry.previous_hash,
    ]
    return hashlib.sha256(canonical_json(said)).hexdigest()


def head() -> AuditHead:
    """The newest entry's number and hash; 0 for an empty chain."""
    return AuditHead.objects.filter(pk=1).first() or AuditHead()


def first_break(*, noted_hash: str | None = None) -> Break | None:
    """Go through the whole chain; `noted_hash` must be the hash of one of its entries. None if all is well."""
    number, previous, is_noted_found = 0, "0" * 64, noted_hash is None
    for entry in AuditEntry.objects.order_by("number").iterator(chunk_size=1000):
        number += 1
        if reason := _what_is_wrong(entry, number, previous):
            return Break(number, reason)
        previous = entry.hash
        is_noted_found = is_noted_found or entry.hash == noted_hash
    newest = head()
    if (newest.number, newest.hash) != (number, previous):
        return Break(number + 1, f"the chain ends at {number}, its head says {newest.number}")
    if not is_noted_found:
        return Break(number + 1, "no entry has the hash that was noted: the chain was written anew")
    return None


def _what_is_wrong(entry: AuditEntry, number: int, previous: str) -> str:
    if entry.number != number:
        return f"entries {number} to {entry.number - 1} are missing"
    if entry.previous_hash != previous:
        return "it does not follow from the entry before"
    if entry.hash != hash_of(entry):
        return "its content is not what was hashed"
    if entry.kind == REPORTED and not is_genuine(Proof(**entry.detail["proof"])):
        return f"{entry.detail['proof']['device_id']} has not signed this report"
    return ""


def is_genuine(proof: Proof) -> bool:
    """Whether the device has signed this request."""
    signed = signing_input(
        device_id=proof.device_id,
        method="POST",
        target=proof.target,
        timestamp_s=proof.timestamp_s,
        nonce=proof.nonce,
        body=proof.body.encode(),
    )
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(proof.public_key))
        key.verify(base64.b64decode(proof.signature), signed)
    except (InvalidSignature, ValueError):
        return False
    return True
