"""Admission: may this device take that set? Decided from manifests alone, before the first byte of payload comes.

Pure: what the disk and the memory have is passed in. Raises `AdmissionError`; its code and evidence
go into the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge_agent.business import profile_of
from edge_agent.errors import AdmissionError
from edge_agent.protocol import DesiredState, Limits, ReleaseRef, Window
from engine.artifact import AdapterManifest, BaseManifest, Manifest, check_fits
from engine.errors import AdapterMismatchError

WORKING_MEMORY_BYTES = 256 << 20
"""What an engine process needs beside its weights: interpreter, libraries, activations, a short KV cache."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the device has to spend."""

    free_disk_bytes: int
    disk_reserve_bytes: int
    total_memory_bytes: int


def check_set(desired: DesiredState, manifests: Mapping[str, Manifest]) -> None:
    """Raise unless the set makes sense: one base, adapters made for it, each name once."""
    base = _base_manifest(desired, manifests)
    names = [ref.name for ref in desired.releases]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise AdmissionError(
            f"{doubled[0]!r} names two releases of the set: clients could not tell them apart. Rename one of them.",
            code="duplicate_name",
        )
    for ref in desired.adapters:
        _check_adapter(ref, manifests[ref.digest], desired.base, base)


def check_limits(limits: Limits) -> tuple[Window, ...]:
    """The fleet's windows for downloads; raise for a limit that nobody can keep to."""
    for name in ("memory_bytes", "download_bytes_per_s", "min_decode_tokens_per_s"):
        value = getattr(limits, name)
        if value is not None and value <= 0:
            raise _bad_limit(name, f"{value} is not above 0")
    try:
        return tuple(map(Window.parse, limits.download_windows))
    except ValueError as error:
        raise _bad_limit("download_windows", str(error)) from error


def _bad_limit(name: str, why: str) -> AdmissionError:
    return AdmissionError(
        f"the fleet's limit {name} can't be kept: {why}. Correct it on the device's groups.",
        code="bad_limit",
        evidence={"limit": name},
    )


def check_room(desired: DesiredState, manifests: Mapping[str, Manifest], missing_bytes: int, room: Room) -> None:
    """Raise unless disk and memory are enough for the set."""
    needed = missing_bytes + room.disk_reserve_bytes
    if needed > room.free_disk_bytes:
        raise AdmissionError(
            f"{missing_bytes} bytes are to come and {room.disk_reserve_bytes} must stay free, but the disk has only "
            f"{room.free_disk_bytes}: free some space or roll out a smaller set",
            code="disk_full",
            evidence={"missing_bytes": str(missing_bytes), "free_bytes": str(room.free_disk_bytes)},
        )
    memory = memory_bytes(manifests[ref.digest] for ref in desired.releases)
    limit = min(room.total_memory_bytes, desired.limits.memory_bytes or room.total_memory_bytes)
    if memory > limit:
        raise AdmissionError(
            f"the set takes about {memory} bytes of memory, this device may spend {limit}: "
            "roll out a smaller base or fewer adapters",
            code="not_enough_memory",
            evidence={"needed_bytes": str(memory), "limit_bytes": str(limit)},
        )


def memory_bytes(manifests: Iterable[Manifest]) -> int:
    """About what an engine needs to serve these bundles: all their files in memory, and room to work."""
    return WORKING_MEMORY_BYTES + sum(entry.size_bytes for manifest in manifests for entry in manifest.files)


def _base_manifest(desired: DesiredState, manifests: Mapping[str, Manifest]) -> BaseManifest | None:
    if desired.base is None:
        return None
    manifest = manifests[desired.base.digest]
    if not isinstance(manifest, BaseManifest):
        raise AdmissionError(f"{desired.base.name} is rolled out as a base but is an adapter", code="wrong_kind")
    return manifest


def _check_adapter(
    ref: ReleaseRef, manifest: Manifest, base: ReleaseRef | None, base_manifest: BaseManifest | None
) -> None:
    if not isinstance(manifest, AdapterManifest):
        raise AdmissionError(f"{ref.name} is rolled out as an adapter but is a base", code="wrong_kind")
    if base is None or base_manifest is None:
        raise AdmissionError(f"adapter {ref.name} came without a base: roll out its base with it", code="no_base")
    try:
        check_fits(manifest, base_manifest, base.digest)
    except AdapterMismatchError as error:
        raise AdmissionError(
            f"{ref.name}: {error}", code=error.code, evidence={"adapter": ref.digest, "base": base.digest}
        ) from error
    profile_of(ref.name, manifest.business)
