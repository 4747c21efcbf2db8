"""A TUF repository in memory, made with python-tuf: well-behaved until a test makes it lie.

`publish` signs everything anew and puts it into `files`, by URL path; tests change parts before, or `files` after.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from engine.strict_json import encode
from engine.trust_documents import POLICY_PATH, Policy, ReleaseTarget, release_path

PUBLISHER = "publisher"


def in_days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def make_signer() -> CryptoSigner:
    private = Ed25519PrivateKey.generate()
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


class TufRepository:
    def __init__(self, *, root_threshold: int = 1) -> None:
        self.signers: dict[str, list[CryptoSigner]] = defaultdict(list)
        self.files: dict[str, bytes] = {}
        self.contents: dict[str, bytes] = {}
        self.root = Root(expires=in_days(365), consistent_snapshot=True)
        self.targets = Targets(expires=in_days(90))
        self.delegated = {PUBLISHER: Targets(expires=in_days(90))}
        self.snapshot = Snapshot(expires=in_days(7))
        self.timestamp = Timestamp(expires=in_days(1))
        for role in ("root", "targets", "snapshot", "timestamp"):
            for _ in range(root_threshold if role == "root" else 1):
                self.add_key(role)
        self.root.roles["root"].threshold = root_threshold
        role = DelegatedRole(PUBLISHER, [], 1, terminating=True, paths=["releases/*/*"])
        self.targets.delegations = Delegations({}, {PUBLISHER: role})
        self.add_key(PUBLISHER)
        self.root_bytes = self.sign_root()
        self.set_policy(Policy())

    def copy(self) -> TufRepository:
        """Another one with the same keys and metadata, which goes its own way from here."""
        made = copy.copy(self)
        made.signers = defaultdict(list, {role: [*signers] for role, signers in self.signers.items()})
        made.files, made.contents = dict(self.files), dict(self.contents)
        for name in ("root", "targets", "delegated", "snapshot", "timestamp"):
            setattr(made, name, copy.deepcopy(getattr(self, name)))
        return made

    # Keys

    def add_key(self, role: str) -> CryptoSigner:
        signer = make_signer()
        delegator: Any = self.targets if role in self.delegated else self.root
        delegator.add_key(signer.public_key, role)
        self.signers[role].append(signer)
        return signer

    def replace_keys(self, role: str) -> None:
        """As after a compromise: the old keys of the role count no more."""
        old = self.signers[role]
        delegator: Any = self.targets if role in self.delegated else self.root
        for signer in old:
            delegator.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = []
        self.add_key(role)

    def rotate_root(self) -> None:
        """The next root, signed by those who may."""
        self.root.version += 1
        self.sign_root()

    def sign_root(self) -> bytes:
        data = self.sign("root", self.root)
        self.files[f"metadata/{self.root.version}.root.json"] = data
        return data

    # Targets

    def set_policy(self, policy: Policy) -> None:
        self._put(self.targets, POLICY_PATH, encode(policy))
        self.publish()

    def vouch_for(self, target: ReleaseTarget, *, role: str = PUBLISHER) -> None:
        path = release_path(target.name, target.digest)
        if self.contents.get(path) != encode(target):
            self._put(self.delegated[role], path, encode(target))
            self.publish()

    def withdraw(self, name: str, digest: str) -> None:
        del self.delegated[PUBLISHER].targets[release_path(name, digest)]
        self.publish()

    def _put(self, role: Targets, path: str, content: bytes) -> None:
        self.contents[path] = content
        role.targets[path] = TargetFile.from_data(path, content, ["sha256"])
        directory, _, name = path.rpartition("/")
        hashed = f"{hashlib.sha256(content).hexdigest()}.{name}"
        self.files[f"targets/{directory}/{hashed}" if directory else f"targets/{hashed}"] = content

    # Metadata

    def publish(self) -> None:
        for name, role in {"targets": self.targets, **self.delegated}.items():
            role.version += 1
            self.snapshot.meta[f"{name}.json"] = self._store(f"{role.version}.{name}", name, role)
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        self.snapshot.version += 1
        self.timestamp.snapshot_meta = self._store(f"{self.snapshot.version}.snapshot", "snapshot", self.snapshot)
        self.publish_timestamp()

    def let_expire(self) -> None:
        """From now on there is only metadata that has expired, until `renew`."""
        self.timestamp.expires = in_days(-1)
        self.publish_timestamp()

    def renew(self) -> None:
        self.timestamp.expires = in_days(1)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.timestamp.version += 1
        self._store("timestamp", "timestamp", self.timestamp)

    def sign(self, role: str, signed: Any) -> bytes:
        metadata = Metadata(signed)
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _store(self, file: str, role: str, signed: Any) -> MetaFile:
        data = self.sign(role, signed)
        self.files[f"metadata/{file}.json"] = data
        return MetaFile(signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
