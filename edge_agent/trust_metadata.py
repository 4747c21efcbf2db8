"""What the fleet's owners have signed, as far as this device has verified it: The Update Framework's client.

`refresh` brings the metadata up to date, `target` gives a file that it vouches for, `policy` and `check_release` read
those. Everything the TUF specification asks of a client is python-tuf's work; here its errors get the names under
which operators see them. Knows nothing of what is done with a verdict.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edge_agent.errors import AgentError, RefusedReleaseError, UntrustedError
from edge_agent.journal import replace_file
from edge_agent.protocol import DesiredState, ReleaseRef
from edge_agent.trust_transport import AgentDownloadError
from engine.strict_json import DecodeError, decode
from engine.trust_documents import POLICY_PATH, Policy, ReleaseTarget, release_path

T = TypeVar("T")

MAX_TARGET_BYTES: Final = 4 << 20

_LIMITS = UpdaterConfig(root_max_length=512_000, snapshot_max_length=2_000_000, targets_max_length=MAX_TARGET_BYTES)

_NAMES: Final[Mapping[type[Exception], tuple[str, str]]] = {
    tuf.UnsignedMetadataError: (
        "unsigned_metadata",
        (
            "fewer of its role's keys have signed it than the threshold asks for: look for an intruder on the server "
            "or between, and compare `manage.py trust status` with the ceremony's record"
        ),
    ),
    tuf.ExpiredMetadataError: (
        "metadata_expired",
        (
            "nobody has signed it anew in time, or newer metadata is held back: look whether the worker runs, at "
            "`manage.py trust status`, at mirrors in between and at this device's clock"
        ),
    ),
    tuf.BadVersionNumberError: (
        "metadata_rollback",
        (
            "it is older than what this device has seen: an old copy is being served; after a restored backup or a "
            "fast-forward rotate the snapshot and timestamp keys"
        ),
    ),
    tuf.LengthOrHashMismatchError: (
        "metadata_mismatch",
        "files of different times or makers were mixed: look at caches and mirrors in between",
    ),
}
_BAD_METADATA = ("bad_metadata", "it is no metadata of this repository: look at what the server or mirror serves")


class _DurableUpdater(Updater):
    """The library's updater, which survives a power loss at any write, and writes nothing that is there already."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            replace_file(path, data)


@dataclass(frozen=True, slots=True)
class Source:
    """Where metadata and targets come from."""

    metadata_url: str
    targets_url: str
    fetcher: FetcherInterface


class TrustedMetadata:
    """Verified metadata and targets in two directories, beginning at a root that the device was given.

    `root` None begins at the root that `metadata` holds already; without a directory for targets there are none. All
    methods may run at the same time: the library must not, and waits for its turn.
    """

    def __init__(self, metadata: Path, targets: Path | None, source: Source, *, root: bytes | None) -> None:
        self._metadata = metadata
        self._targets = targets
        self._source = source
        self._root = root
        self._updater: Updater | None = None
        self._turn = Lock()

    async def refresh(self) -> None:
        """Fetch and verify root, timestamp, snapshot and targets. Raises `UntrustedError`, or why they did not come."""
        await asyncio.to_thread(self._refresh)

    async def target(self, path: str) -> bytes | None:
        """A verified target, from the disk if it is here and current; None if the metadata knows none of that path."""
        return await asyncio.to_thread(self._target, path)

    async def policy(self) -> Policy:
        """What the targets role has decided. Raises `UntrustedError`."""
        data = await self.target(POLICY_PATH)
        if data is None:
            raise UntrustedError("the metadata has no policy: run `manage.py trust init`", code="no_policy")
        return _read(Policy, data)

    async def check_release(self, ref: ReleaseRef, desired: DesiredState) -> ReleaseTarget:
        """What its publisher vouches for.

        Raises `RefusedReleaseError` unless it is signed, not revoked, and what the desired state takes it for.
        """
        if ref.digest in (await self.policy()).revoked:
            raise RefusedReleaseError(
                f"{ref.name} {ref.version} was revoked: roll out another version", code="release_revoked"
            )
        data = await self.target(release_path(ref.name, ref.digest))
        if data is None:
            raise RefusedReleaseError(
                f"no publisher has signed {ref.digest[:12]} as {ref.name}: sign it with `manage.py trust sign`; if it "
                "should not exist, look for an intruder on the server",
                evidence={"digest": ref.digest},
            )
        target = _read(ReleaseTarget, data)
        _check_is_what_is_wanted(target, ref, desired)
        return target

    async def expired_for_s(self) -> float:
        """For how many seconds the newest timestamp that was verified has been expired; negative while it is not.

        Infinite if it is damaged on the disk: nobody knows then.
        """
        return await asyncio.to_thread(self._expired_for_s)

    def _refresh(self) -> None:
        with self._turn:
            self._updater = None
            self._updater = self._refreshed()

    def _refreshed(self) -> Updater:
        self._metadata.mkdir(parents=True, exist_ok=True)
        if self._targets:
            self._targets.mkdir(parents=True, exist_ok=True)
        try:
            updater = _DurableUpdater(
                str(self._metadata),
                self._source.metadata_url,
                str(self._targets) if self._targets else None,
                self._source.targets_url,
                self._source.fetcher,
                _LIMITS,
                bootstrap=self._root,
            )
            updater.refresh()
        except (tuf.RepositoryError, tuf.DownloadError) as error:
            raise _named(error) from error
        return updater

    def _target(self, path: str) -> bytes | None:
        with self._turn:
            if self._updater is None:
                self._updater = self._refreshed()
            try:
                info = self._updater.get_targetinfo(path)
                if info is None:
                    return None
                if info.length > MAX_TARGET_BYTES:
                    raise UntrustedError(f"{path} is larger than {MAX_TARGET_BYTES} bytes", code="endless_data")
                file = self._updater.find_cached_target(info) or self._updater.download_target(info)
                return Path(file).read_bytes()
            except (tuf.RepositoryError, tuf.DownloadError) as error:
                raise _named(error) from error

    def _expired_for_s(self) -> float:
        with self._turn:
            try:
                timestamp = Metadata[Any].from_file(str(self._metadata / "timestamp.json")).signed
            except DeserializationError:
                return math.inf
        expires: datetime = timestamp.expires
        return time.time() - expires.replace(tzinfo=UTC).timestamp()


def _check_is_what_is_wanted(target: ReleaseTarget, ref: ReleaseRef, desired: DesiredState) -> None:
    """Good software in the wrong place is an attack as well: the server's words are held against the signed ones."""
    is_base = desired.base is not None and ref.digest == desired.base.digest
    wanted_base = None if is_base or desired.base is None else desired.base.digest
    wanted = ("base" if is_base else "adapter", ref.name, ref.version, ref.digest, wanted_base)
    signed = (target.kind, target.name, target.version, target.digest, target.base)
    if wanted != signed:
        raise RefusedReleaseError(
            f"the desired state takes {ref.digest[:12]} for {_words(wanted)}, its publisher signed it as "
            f"{_words(signed)}: roll out a set whose parts belong together",
            code="wrong_software",
            evidence={"wanted": _words(wanted), "signed": _words(signed)},
        )


def _words(said: tuple[str, str, str, str, str | None]) -> str:
    kind, name, version, digest, base = said
    return f"{kind} {name} {version} ({digest[:12]})" + (f" for base {base[:12]}" if base else "")


def _read(cls: type[T], data: bytes) -> T:
    try:
        return decode(cls, data)
    except DecodeError as error:
        raise UntrustedError(
            f"a signed {cls.__name__} can't be read ({error}): update the agent", code="bad_metadata"
        ) from error


def _named(error: tuf.RepositoryError | tuf.DownloadError) -> AgentError:
    """The library's error under the name that operators see."""
    if isinstance(error, AgentDownloadError):
        cause = error.cause
        return UntrustedError(f"metadata could not be fetched: {cause}", code=cause.code)
    if isinstance(error, tuf.DownloadHTTPError):
        return UntrustedError(f"metadata could not be fetched: {error}", code="metadata_missing")
    code, advice = next((name for kind, name in _NAMES.items() if isinstance(error, kind)), _BAD_METADATA)
    return UntrustedError(f"metadata is refused ({error}): {advice}", code=code)
