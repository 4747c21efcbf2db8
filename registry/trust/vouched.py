"""What devices can know of releases: which ones publishers vouch for, and which are revoked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tuf.api.metadata import Delegations

from engine.trust_documents import release_path
from registry.models import Release
from registry.trust import repository
from registry.trust.ceremony import publisher_of, read_policy
from registry.trust.repository import TARGETS


@dataclass(frozen=True, slots=True)
class Vouched:
    """Read once, asked for many releases. `paths` is None before there are keys, when nothing can be signed yet."""

    paths: frozenset[str] | None = None
    revoked: frozenset[str] = frozenset()

    def is_unsigned(self, release: Release) -> bool:
        """Whether devices refuse the release since no publisher vouches for it."""
        return self.paths is not None and release_path(release.name, release.digest) not in self.paths

    def is_revoked(self, release: Release) -> bool:
        """Whether no device may run the release any more."""
        return release.digest in self.revoked


def read_vouched() -> Vouched:
    """The releases below the paths of their publishers, and the policy's revocations, as devices find them now."""
    top = repository.current(TARGETS)
    if top is None:
        return Vouched()
    paths = frozenset(_signed_paths(top.signed.delegations or Delegations({}, {})))
    return Vouched(paths, frozenset(read_policy(is_published=True).revoked))


def _signed_paths(delegations: Delegations) -> Iterator[str]:
    for name in delegations.roles or ():
        if found := repository.current(name):
            yield from (path for path in found.signed.targets if publisher_of(path, delegations) == name)
