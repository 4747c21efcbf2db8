"""What of the served set must not run any more: revoked releases, and everything once metadata is too stale to know.

What was heard last is kept in a file, so that a restart without network forgets nothing. Knows digests; who refuses
requests is the host.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent.errors import UntrustedError
from edge_agent.journal import replace_file
from edge_agent.protocol import Problem
from edge_agent.trust_metadata import TrustedMetadata
from engine.strict_json import DecodeError, decode, encode

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Heard:
    """The file's content: what the policy said last."""

    revoked: tuple[str, ...] = ()
    max_stale_s: int | None = None


class Revocation:
    """Looks for revoked releases, and says whether digests may run."""

    def __init__(self, path: Path, trusted: TrustedMetadata) -> None:
        self._path = path
        self._trusted = trusted
        self._heard = _read(path)
        self._is_stale = False

    async def look(self) -> None:
        """Refresh the metadata and take in its policy; raises `UntrustedError`, after what is known was applied."""
        try:
            await self._trusted.refresh()
            policy = await self._trusted.policy()
        except UntrustedError:
            await self._judge_age()
            raise
        heard = _Heard(policy.revoked, policy.max_stale_s)
        if heard != self._heard:
            self._heard = heard
            replace_file(self._path, encode(heard))
        self._is_stale = False

    def problem_with(self, digests: Collection[str]) -> Problem | None:
        """Why a set of releases must not run; None if it may."""
        if self._is_stale:
            return Problem(
                "metadata_outlived",
                f"The fleet's metadata expired more than {self._heard.max_stale_s} s ago, and its policy says that "
                "nothing runs then: connect the device.",
            )
        if revoked := sorted(set(digests) & set(self._heard.revoked)):
            return Problem(
                "release_revoked",
                f"The release {revoked[0][:12]} was revoked and does not run any more: roll out another version.",
                {"digest": revoked[0]},
            )
        return None

    async def _judge_age(self) -> None:
        if self._heard.max_stale_s is not None:
            self._is_stale = await self._trusted.expired_for_s() > self._heard.max_stale_s


def _read(path: Path) -> _Heard:
    try:
        return decode(_Heard, path.read_bytes())
    except FileNotFoundError:
        return _Heard()
    except (OSError, DecodeError) as error:
        log.warning("revocation.damaged", error=str(error))
        return _Heard()
