"""What the fleet's TUF targets say, read and written by both sides: a release's target document, and the policy.

A TUF target is a small file whose hash publishers sign. `targets/releases/<name>/<digest>.json` says what a release is;
`targets/policy.json`, signed by the offline targets role, says who may sign desired states and what is revoked.
Standard library only, a door; signatures and metadata are the TUF library's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

POLICY_PATH = "policy.json"


def release_path(name: str, digest: str) -> str:
    """Where a release's target document lies. Delegations name artifacts, so a publisher signs only below its own."""
    return f"releases/{name}/{digest}.json"


@dataclass(frozen=True, slots=True)
class ReleaseTarget:
    """What a publisher vouches for: that this content is this version of this artifact, made for that base.

    `index_sha256` is that of the release's chunk index (`engine.chunk_index`), by which its files are fetched.
    """

    kind: Literal["base", "adapter"]
    name: str
    version: str
    digest: str
    index_sha256: str
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the targets role decides for all devices.

    desired_keys: raw Ed25519 keys in base64 by id, each of which may sign desired states. revoked: digests of releases
    that no device may run. max_stale_s: for how long after its metadata has expired a device goes on with what it has;
    None is for ever.
    """

    desired_keys: Mapping[str, str] = field(default_factory=dict)
    revoked: tuple[str, ...] = ()
    max_stale_s: int | None = None
