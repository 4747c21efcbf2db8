"""TUF metadata in the database: staged, signed, published as soon as its threshold is met, and read to be served.

Whatever is published has been verified against its delegator first, as a client would. Every publication makes a new
snapshot and timestamp with the online keys; the beat makes them anew before they expire. Knows roles and signatures;
what stands in the metadata is decided in `ceremony`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from django.db import transaction
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from registry.errors import RegistryError
from registry.models import TrustMetadata, TrustTarget
from registry.trust.keys import online_signer

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
VALID: Final = {
    ROOT: timedelta(days=365),
    TARGETS: timedelta(days=180),
    SNAPSHOT: timedelta(days=7),
    TIMESTAMP: timedelta(days=1),
}
_VERSIONS_KEPT = 5
_log = structlog.get_logger(__name__)


class NoTrustError(RegistryError):
    """There is no TUF repository yet."""

    code = "trust_not_initialised"
    title = "No keys have been made yet"
    default_hint = "Run `manage.py trust init`."


class NothingStagedError(RegistryError):
    """The role waits for no signature."""

    code = "nothing_staged"
    title = "Nothing to sign"
    default_hint = "`manage.py trust status` shows what waits for signatures."


def current(role: str) -> Metadata[Any] | None:
    """The published metadata of a role, None if there is none."""
    row = TrustMetadata.objects.filter(role=role, is_published=True).order_by("-version").first()
    return Metadata.from_bytes(bytes(row.content)) if row else None


def current_root() -> Root:
    """The published root; raises `NoTrustError`."""
    return _signed_or_raise(ROOT)


def current_targets() -> Targets:
    """The published top-level targets; raises `NoTrustError`."""
    return _signed_or_raise(TARGETS)


def publishers() -> Sequence[str]:
    """Delegated roles by name."""
    found = current(TARGETS)
    return sorted(found.signed.delegations.roles) if found and found.signed.delegations else []


def staged(role: str) -> Metadata[Any] | None:
    """What of a role waits for signatures."""
    row = TrustMetadata.objects.filter(role=role, is_published=False).order_by("-version").first()
    return Metadata.from_bytes(bytes(row.content)) if row else None


def latest(role: str) -> Any:
    """The newest content of a role, published or staged, for the next change; raises `NoTrustError`."""
    found = staged(role) or current(role)
    if found is None:
        raise NoTrustError(f"there is no metadata of the role {role}")
    return found.signed


def stage(role: str, signed: Any, signers: Iterable[Signer]) -> None:
    """Put a role's next version in place, signed as far as these keys go. `settle` publishes what is complete."""
    before = current(role)
    signed.version = before.signed.version + 1 if before else 1
    signed.expires = _expiry(VALID.get(role, VALID[TARGETS]))
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    _store(role, metadata, is_published=False)


def add_signature(role: str, signer: Signer) -> None:
    """One more signature on what is staged; raises `NothingStagedError`."""
    metadata = staged(role)
    if metadata is None:
        raise NothingStagedError(f"nothing of the role {role} waits for a signature")
    metadata.sign(signer, append=True)
    _store(role, metadata, is_published=False)


@transaction.atomic
def settle() -> list[str]:
    """Publish every staged role that enough keys have signed, delegators first; returns their names."""
    done = [role for role in (ROOT, TARGETS) if _publish_if_signed(role)]
    done += [role for role in publishers() if _publish_if_signed(role)]
    if done:
        _refresh(with_snapshot=True)
        _log.info("trust.published", roles=done)
    return done


def missing_signatures(role: str) -> str:
    """Why a staged role is not published, in words; "" if nothing is staged or it is complete."""
    metadata = staged(role)
    if metadata is None:
        return ""
    try:
        _verify(role, metadata)
    except (RepositoryError, RegistryError, ValueError) as error:
        return str(error)
    return ""


@transaction.atomic
def refresh_due(*, now: datetime | None = None) -> bool:
    """Sign the timestamp anew, and the snapshot if need be, once half of their time is over; False if not due."""
    now = now or datetime.now(UTC)
    timestamp, snapshot = current(TIMESTAMP), current(SNAPSHOT)
    if timestamp is None or snapshot is None:
        return False
    snapshot_is_due = _is_due(snapshot, VALID[SNAPSHOT], now)
    if not snapshot_is_due and not _is_due(timestamp, VALID[TIMESTAMP], now):
        return False
    _refresh(with_snapshot=snapshot_is_due)
    return True


def add_target(role: Targets, path: str, content: bytes) -> None:
    """Make this content a target of a role that is about to be staged."""
    sha256 = hashlib.sha256(content).hexdigest()
    TrustTarget.objects.get_or_create(path=path, sha256=sha256, defaults={"content": content})
    role.targets[path] = TargetFile.from_data(path, content, ["sha256"])


def read_metadata(name: str) -> bytes | None:
    """What is served as `<name>.json`, where name is `timestamp` or `<version>.<role>`."""
    rows = TrustMetadata.objects.filter(is_published=True)
    version, dot, role = name.partition(".")
    if name == TIMESTAMP:
        row = rows.filter(role=TIMESTAMP).order_by("-version").first()
    elif dot and version.isascii() and version.isdigit() and len(version) < 10:
        row = rows.filter(role=role, version=int(version)).first()
    else:
        return None
    return bytes(row.content) if row else None


def read_target(path: str) -> bytes | None:
    """What is served as a target; the name in `path` begins with its hash, as with consistent snapshots."""
    directory, _, hashed = path.rpartition("/")
    sha256, _, name = hashed.partition(".")
    row = TrustTarget.objects.filter(path=f"{directory}/{name}" if directory else name, sha256=sha256).first()
    return bytes(row.content) if row else None


def root_with_digest(sha256: str) -> bytes | None:
    """A published root by the SHA-256 of its bytes, as enrolment tokens pin it."""
    rows = TrustMetadata.objects.filter(role=ROOT, is_published=True).order_by("-version")
    return next((data for row in rows if hashlib.sha256(data := bytes(row.content)).hexdigest() == sha256), None)


def root_digest() -> str | None:
    """The SHA-256 of the newest root's bytes, by which people and tokens name it; None if there is none."""
    row = TrustMetadata.objects.filter(role=ROOT, is_published=True).order_by("-version").first()
    return hashlib.sha256(bytes(row.content)).hexdigest() if row else None


def _publish_if_signed(role: str) -> bool:
    metadata = staged(role)
    if metadata is None or missing_signatures(role):
        return False
    _store(role, metadata, is_published=True)
    return True


def _verify(role: str, metadata: Metadata[Any]) -> None:
    """As a client will: a root by the one before and by itself, the others by whoever delegates to them."""
    if role == ROOT:
        metadata.verify_delegate(ROOT, metadata)
        before = current(ROOT)
        delegator = before or metadata
    else:
        delegator = current(ROOT if role in (TARGETS, SNAPSHOT, TIMESTAMP) else TARGETS)
    if delegator is None:
        raise NoTrustError("the role that delegates is not published yet")
    delegator.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def _refresh(*, with_snapshot: bool) -> None:
    """A new timestamp over the snapshot; with a new snapshot over all targets roles, if asked for."""
    roles = [TARGETS, *publishers()]
    if current(TARGETS) is None:
        return
    if with_snapshot:
        meta = {f"{role}.json": _meta_file(role) for role in roles if current(role)}
        _sign_online(SNAPSHOT, Snapshot(meta=meta))
    _sign_online(TIMESTAMP, Timestamp(snapshot_meta=_meta_file(SNAPSHOT)))


def _sign_online(role: str, signed: Snapshot | Timestamp) -> None:
    stage(role, signed, [online_signer(role, current_root().roles[role].keyids)])
    metadata = staged(role)
    assert metadata is not None
    _verify(role, metadata)
    _store(role, metadata, is_published=True)
    old = TrustMetadata.objects.filter(role=role, version__lte=metadata.signed.version - _VERSIONS_KEPT)
    old.delete()


def _meta_file(role: str) -> MetaFile:
    row = TrustMetadata.objects.filter(role=role, is_published=True).order_by("-version").first()
    assert row is not None
    content = bytes(row.content)
    return MetaFile(row.version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def _store(role: str, metadata: Metadata[Any], *, is_published: bool) -> None:
    values = {"content": metadata.to_bytes(), "is_published": is_published}
    TrustMetadata.objects.update_or_create(role=role, version=metadata.signed.version, defaults=values)


def _signed_or_raise(role: str) -> Any:
    found = current(role)
    if found is None:
        raise NoTrustError(f"there is no metadata of the role {role}")
    return found.signed


def _expiry(valid: timedelta) -> datetime:
    return (datetime.now(UTC) + valid).replace(microsecond=0)


def _is_due(metadata: Metadata[Any], valid: timedelta, now: datetime) -> bool:
    expires: datetime = metadata.signed.expires
    return expires.replace(tzinfo=UTC) - now < valid / 2
