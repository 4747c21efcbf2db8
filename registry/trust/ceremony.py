"""What people decide with offline keys: first keys, publishers, rotation, revocation, and which releases are signed.

Each function stages the change with the signatures of the keys it is given, and publishes it once enough have signed;
further keepers of keys sign with `sign_staged`. Keys come in as signers: where they are kept is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from django.db import transaction
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Root, Targets

from engine.strict_json import decode, encode
from engine.trust_documents import POLICY_PATH, Policy, ReleaseTarget, release_path
from registry.errors import RegistryError
from registry.indexes import ensure_index
from registry.models import Release, TrustTarget
from registry.trust import repository
from registry.trust.keys import ONLINE_ROLES, make_online_key, online_signer, raw_public_key
from registry.trust.repository import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)


class CeremonyRefusedError(RegistryError):
    """The step makes no sense here; nothing was changed."""

    code = "ceremony_refused"
    title = "The ceremony refuses this"
    default_hint = "`manage.py trust status` shows roles, keys and publishers."


@dataclass(frozen=True, slots=True)
class OfflineKeys:
    """Keys of an offline role, and how many of them must sign."""

    signers: Sequence[CryptoSigner]
    threshold: int


@transaction.atomic
def init(*, root: OfflineKeys, targets: OfflineKeys) -> None:
    """Make the online keys and the first metadata. Raises `CeremonyRefusedError` if there is some already."""
    if repository.current(ROOT) or repository.staged(ROOT):
        raise CeremonyRefusedError("there is a root already", hint="Rotate its keys instead.")
    online = {role: make_online_key(role) for role in ONLINE_ROLES}
    first = Root(consistent_snapshot=True)
    keys = {ROOT: root.signers, TARGETS: targets.signers, **{r: [online[r]] for r in (SNAPSHOT, TIMESTAMP)}}
    for role, signers in keys.items():
        for signer in signers:
            first.add_key(signer.public_key, role)
    first.roles[ROOT].threshold, first.roles[TARGETS].threshold = root.threshold, targets.threshold
    repository.stage(ROOT, first, root.signers)
    top = Targets()
    policy = Policy(desired_keys={online["desired"].public_key.keyid: raw_public_key(online["desired"])})
    repository.add_target(top, POLICY_PATH, encode(policy, omits_empty=True))
    repository.stage(TARGETS, top, targets.signers)
    repository.settle()


@transaction.atomic
def add_publisher(
    *,
    name: str,
    artifacts: Sequence[str],
    publisher: Key,
    publisher_signs: Iterable[CryptoSigner] = (),
    keys: Iterable[CryptoSigner],
) -> None:
    """Let a publisher sign releases of artifacts whose names match, and of no others. `keys` are of targets.

    Without its private half in `publisher_signs` the role waits, empty, for the publisher's first signature.
    """
    if name in TOP_LEVEL or name in ONLINE_ROLES:
        raise CeremonyRefusedError(f"{name} is the name of a role of its own", hint="Choose another name.")
    if bad := [pattern for pattern in artifacts if not pattern or "/" in pattern]:
        raise CeremonyRefusedError(f"{bad[0]!r} is no pattern of artifact names", hint="For instance home, or car-*.")
    top = repository.latest(TARGETS)
    delegations = top.delegations or Delegations({}, {})
    if delegations.roles is None or name in delegations.roles:
        raise CeremonyRefusedError(f"there is a publisher {name} already", hint="Rotate its key instead.")
    paths = [release_path(pattern, "*").removesuffix(".json") for pattern in artifacts]
    delegations.roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=paths)
    top.delegations = delegations
    top.add_key(publisher, name)
    repository.stage(TARGETS, top, keys)
    repository.stage(name, Targets(), publisher_signs)
    repository.settle()


@transaction.atomic
def add_key(*, role: str, key: Key, keys: Iterable[CryptoSigner]) -> None:
    """One more key may sign for a role. `keys` are of the role's delegator."""
    delegator, signed = _delegator_of(role)
    signed.add_key(key, role)
    repository.stage(delegator, signed, keys)
    repository.settle()


@transaction.atomic
def revoke_key(*, role: str, keyid: str, keys: Iterable[CryptoSigner]) -> None:
    """A key may not sign for a role any more. `keys` are of the role's delegator; a root's of the old and the new."""
    delegator, signed = _delegator_of(role)
    _check_may_go(signed, role, keyid)
    signed.revoke_key(keyid, role)
    repository.stage(delegator, signed, keys)
    repository.settle()


@transaction.atomic
def rotate(*, role: str, new: CryptoSigner, keys: Sequence[CryptoSigner]) -> None:
    """The new key instead of all that the role has. For root, `keys` must hold enough of the old ones as well.

    What the role has signed is signed anew by the new key. After a key of snapshot or timestamp was stolen this also
    undoes a fast-forward: devices forget versions that only the old key had signed.
    """
    if role == "desired":
        _change_policy(keys, desired_keys={new.public_key.keyid: raw_public_key(new)})
        return
    delegator, signed = _delegator_of(role)
    for keyid in list(_role_of(signed, role).keyids):
        signed.revoke_key(keyid, role)
    signed.add_key(new.public_key, role)
    repository.stage(delegator, signed, [*keys, new] if role == ROOT else keys)
    if role not in (ROOT, SNAPSHOT, TIMESTAMP):
        repository.stage(role, repository.latest(role), [new])
    repository.settle()


@transaction.atomic
def revoke_release(*, release: Release, keys: Iterable[CryptoSigner]) -> None:
    """No device runs this content once it has heard of it. `keys` are of targets."""
    revoked = {*read_policy().revoked, release.digest}
    _change_policy(keys, revoked=tuple(sorted(revoked)))


@transaction.atomic
def set_max_stale(*, max_stale_s: int | None, keys: Iterable[CryptoSigner]) -> None:
    """For how long devices go on with expired metadata, None for ever. `keys` are of targets."""
    _change_policy(keys, max_stale_s=max_stale_s)


@transaction.atomic
def sign_releases(*, publisher: str, releases: Sequence[Release], key: CryptoSigner) -> None:
    """The publisher vouches for releases. Raises `CeremonyRefusedError` for one that is not below its own path.

    Where the paths of two publishers overlap, the one that was added first is asked, and no other.
    """
    delegations = repository.current_targets().delegations
    if delegations is None or delegations.roles is None or publisher not in delegations.roles:
        raise CeremonyRefusedError(f"there is no publisher {publisher}")
    signed = repository.latest(publisher)
    for release in releases:
        path = release_path(release.name, release.digest)
        if (whose := publisher_of(path, delegations)) != publisher:
            hint = f"They are {whose}'s to sign." if whose else ""
            raise CeremonyRefusedError(f"{publisher} may not sign releases of {release.name}", hint=hint)
        repository.add_target(signed, path, encode(target_of(release), omits_empty=True))
    repository.stage(publisher, signed, [key])
    if publisher not in repository.settle():
        raise CeremonyRefusedError(f"the key is none of {publisher}'s", hint="Name the publisher's own key.")


@transaction.atomic
def sign_staged(*, role: str, key: CryptoSigner) -> bool:
    """One more signature on what is staged for a role; whether it is published now."""
    repository.add_signature(role, key)
    return role in repository.settle()


def target_of(release: Release) -> ReleaseTarget:
    """The document that says what a release is; makes its chunk index if there is none yet."""
    ensure_index(release)
    kind = "base" if release.base is None else "adapter"
    base = release.base.digest if release.base else None
    return ReleaseTarget(kind, release.name, release.version, release.digest, release.index_sha256, base)


def read_policy(*, is_published: bool = False) -> Policy:
    """The newest policy, or the newest that devices can know; raises `repository.NoTrustError`."""
    targets: Targets = repository.current_targets() if is_published else repository.latest(TARGETS)
    info = targets.targets[POLICY_PATH]
    return decode(Policy, bytes(TrustTarget.objects.get(path=POLICY_PATH, sha256=info.hashes["sha256"]).content))


def publisher_of(path: str, delegations: Delegations) -> str | None:
    """The one publisher that devices ask about a release's path; None if it is nobody's."""
    return next((name for name, _is_last in delegations.get_roles_for_target(path)), None)


def desired_signer() -> CryptoSigner:
    """Signs desired states in the fleet's name. Raises `repository.NoTrustError` and `keys.KeyUnusableError`."""
    return online_signer("desired", list(read_policy(is_published=True).desired_keys))


def _change_policy(keys: Iterable[CryptoSigner], **changes: object) -> None:
    top = repository.latest(TARGETS)
    policy = replace(read_policy(), **changes)  # type: ignore[arg-type]
    repository.add_target(top, POLICY_PATH, encode(policy, omits_empty=True))
    repository.stage(TARGETS, top, keys)
    repository.settle()


def _delegator_of(role: str) -> tuple[str, Root | Targets]:
    """The role that says which keys a role has, and its newest content."""
    if role in TOP_LEVEL:
        return ROOT, repository.latest(ROOT)
    if role in repository.publishers():
        return TARGETS, repository.latest(TARGETS)
    raise CeremonyRefusedError(f"there is no role {role}")


def _role_of(signed: Root | Targets, role: str) -> DelegatedRole:
    found: DelegatedRole = signed.get_delegated_role(role)  # type: ignore[assignment]
    return found


def _check_may_go(signed: Root | Targets, role: str, keyid: str) -> None:
    known = _role_of(signed, role)
    if keyid not in known.keyids:
        raise CeremonyRefusedError(f"{role} has no key {keyid[:16]}")
    if len(known.keyids) - 1 < known.threshold:
        raise CeremonyRefusedError(
            f"{role} needs {known.threshold} keys and would have {len(known.keyids) - 1}",
            hint="Add another key first, or rotate.",
        )
