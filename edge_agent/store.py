"""Bundles on the device's disk: which are whole, which are on their way, and which may go.

    bundles/<digest>/          whole and verified; never changed
    partial/<digest>/          manifest.json, .index.json, finished files, and <file>.part while it comes in

A directory moves from `partial` to `bundles` by one rename, after every file was read again and verified. A file that
is found wrong becomes a part again, so that only its wrong chunks are fetched. Knows manifests, indexes and digests,
not where the bytes come from or who wants them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from edge_agent.journal import replace_file, sync_directory, sync_file
from edge_agent.part_file import PartFile, Source, Write
from engine.artifact import (
    MANIFEST_NAME,
    AdapterManifest,
    FileEntry,
    Manifest,
    parse_manifest,
    read_manifest,
    sha256_file,
)
from engine.chunk_index import ChunkIndex, IndexedFile, IndexMismatchError, parse_index
from engine.errors import BundleError

log = structlog.get_logger()

_INDEX_NAME = ".index.json"  # a name that no file of a bundle has
_BLOCK_BYTES = 512  # st_blocks counts in these, whatever the file system's own are


class Store:
    """All bundle directories under one state directory."""

    def __init__(self, directory: Path, write: Write = os.pwritev) -> None:
        """`write` puts bytes of parts on the disk; tests give one that fails."""
        self._write = write
        self._bundles = directory / "bundles"
        self._partial = directory / "partial"
        self._bundles.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir(exist_ok=True)

    def bundle(self, digest: str) -> Path:
        """Where a whole bundle lies."""
        return self._bundles / digest

    def holds(self, digest: str) -> bool:
        """Whether the bundle is here and whole."""
        return (self._bundles / digest / MANIFEST_NAME).is_file()

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest of a bundle that is here or on its way; None if it is not known yet."""
        for place in (self._bundles, self._partial):
            if (place / digest / MANIFEST_NAME).is_file():
                with contextlib.suppress(BundleError):
                    manifest, found = read_manifest(place / digest)
                    if found == digest:
                        return manifest
        return None

    def begin(self, digest: str, manifest: bytes) -> Manifest:
        """Open a partial directory for a release; raises `BundleError` if the bytes are not its manifest."""
        if hashlib.sha256(manifest).hexdigest() != digest:
            raise BundleError(f"the manifest that came for {digest[:12]} has another digest: publish it again")
        parsed = parse_manifest(manifest)
        directory = self._partial / digest
        directory.mkdir(exist_ok=True)
        replace_file(directory / MANIFEST_NAME, manifest)
        return parsed

    def missing_files(self, digest: str, manifest: Manifest) -> list[FileEntry]:
        """Files that are still to come, in the manifest's order."""
        if self.holds(digest):
            return []
        return [entry for entry in manifest.files if not (self._partial / digest / entry.path).is_file()]

    def missing_bytes(self, digest: str, manifest: Manifest) -> int:
        """Bytes of the files that are still to come, whatever has come of them."""
        return sum(entry.size_bytes for entry in self.missing_files(digest, manifest))

    def room_needed(self, digest: str, manifest: Manifest) -> int:
        """Bytes of the disk that files still to come will take, beyond what their parts have already."""
        missing = self.missing_files(digest, manifest)
        return sum(max(0, e.size_bytes - _allocated_bytes(self.incoming(digest, e.path))) for e in missing)

    def index(self, digest: str, manifest: Manifest) -> ChunkIndex | None:
        """The chunk index of a release that is here or on its way; None if it has not come or can't be read."""
        for place in (self._bundles, self._partial):
            with contextlib.suppress(OSError, BundleError):
                return parse_index((place / digest / _INDEX_NAME).read_bytes(), digest, manifest)
        return None

    def keep_index(self, digest: str, manifest: Manifest, data: bytes, sha256: str | None = None) -> ChunkIndex:
        """Put an index beside its release's manifest; raises `IndexMismatchError` if it is not that release's.

        `sha256`: what the index's must be, if that is known.
        """
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise IndexMismatchError(
                f"the index that came for {digest[:12]} is not the one that its publisher signed: sign the release "
                "again with `manage.py trust sign`; if its index should not have changed, look for an intruder"
            )
        index = parse_index(data, digest, manifest)
        replace_file(self._partial / digest / _INDEX_NAME, data)
        return index

    def incoming(self, digest: str, path: str) -> Path:
        """Where a file is filled while it comes in."""
        return self._partial / digest / f"{path}.part"

    def open_part(self, digest: str, file: IndexedFile) -> PartFile:
        """A file to be filled, with room on the disk for all of it; raises `OSError` if there is none."""
        return PartFile(self.incoming(digest, file.path), file, self._write)

    def finish_file(self, part: PartFile) -> None:
        """Give a file that has come in, and whose chunks are right, its name. `complete` brings it to the disk."""
        part.path.rename(part.path.with_suffix(""))

    def reuse_file(self, digest: str, entry: FileEntry) -> bool:
        """Take a file with the same content from another bundle, if it is right there, instead of fetching it."""
        for source in self._files_with(entry):
            if sha256_file(source) == entry.sha256:
                target = self._partial / digest / entry.path
                target.unlink(missing_ok=True)
                os.link(source, target)
                return True
        return False

    def chunk_sources(self, digest: str, wanted: Collection[str]) -> Mapping[str, Sequence[Source]]:
        """Where chunks of these SHA-256 may lie in other bundles, whole ones and parts. Not verified."""
        found: dict[str, list[Source]] = defaultdict(list)
        for directory in self._directories():
            manifest = self.manifest(directory.name) if directory.name != digest else None
            index = self.index(directory.name, manifest) if manifest else None
            for file in index.files if index else ():
                path = next((p for p in _places_of(directory, file.path) if p.is_file()), None)
                for placed in file.placed() if path else ():
                    if path and placed.chunk.sha256 in wanted:
                        found[placed.chunk.sha256].append(Source(path, placed.offset))
        return found

    def _files_with(self, wanted: FileEntry) -> Iterator[Path]:
        for directory in self._bundles.iterdir():
            manifest = self.manifest(directory.name)
            for entry in manifest.files if manifest else ():
                if (entry.sha256, entry.size_bytes) == (wanted.sha256, wanted.size_bytes):
                    yield directory / entry.path

    def complete(self, digest: str) -> None:
        """Verify every file, bring all to the disk, and move the directory in place.

        Raises `BundleError` naming what is wrong: that is a part again, and will be mended chunk by chunk when it is
        fetched. The disk writes while the processor hashes.
        """
        if self.holds(digest):
            return
        directory = self._partial / digest
        manifest, _ = read_manifest(directory)
        with ThreadPoolExecutor(1, "sync") as worker:
            synced = [worker.submit(sync_file, directory / entry.path) for entry in manifest.files]
            wrong = _wrong_files(directory, manifest)
        if wrong:
            _demote(directory, wrong)
            raise BundleError(f"{wrong[0]} does not have the size and SHA-256 that the manifest lists")
        for file in synced:
            file.result()
        sync_directory(directory)
        directory.rename(self._bundles / digest)
        sync_directory(self._bundles)

    def drop_damaged(self, digests: Collection[str]) -> list[str]:
        """Verify whole bundles and take back those that do not match any more, to be mended; returns which."""
        damaged = []
        for digest in digests:
            if not (self._bundles / digest).is_dir():
                continue  # taken back before: its parts are in the hands of a download
            manifest, wrong = self.manifest(digest), [MANIFEST_NAME]
            if self.holds(digest) and manifest:
                wrong = _wrong_files(self._bundles / digest, manifest)
            if wrong:
                log.warning("store.bundle_damaged", digest=digest, files=wrong)
                self._take_back(digest, manifest)
                damaged.append(digest)
        return damaged

    def _take_back(self, digest: str, manifest: Manifest | None) -> None:
        _remove_bundle(self._partial / digest)
        if manifest is None:
            _remove_bundle(self._bundles / digest)
            return
        (self._bundles / digest).rename(self._partial / digest)
        _demote(self._partial / digest, _wrong_files(self._partial / digest, manifest))

    def collect(self, keep: Collection[str], spare_bytes: int = 0) -> int:
        """Remove bundles that are not to be kept; returns how many went.

        Adapters may come back, so those used last stay while they take no more than `spare_bytes` together.
        """
        for digest in keep:
            with contextlib.suppress(OSError):
                os.utime(self._bundles / digest)  # in use now
        spare = self._spare_adapters(keep)
        while sum(_size_bytes(directory) for directory in spare) > spare_bytes:
            spare.pop(0)
        doomed = [d for d in self._directories() if d.name not in keep and d not in spare]
        for directory in doomed:
            self._evict(directory)
        return len(doomed)

    def make_room(self, free_bytes: int, keep: Collection[str]) -> None:
        """Remove adapters that are not to be kept, least recently used first, until so many bytes are free."""
        for directory in self._spare_adapters(keep):
            if self.free_bytes() >= free_bytes:
                return
            self._evict(directory)

    def _spare_adapters(self, keep: Collection[str]) -> list[Path]:
        """Whole adapters that nobody needs now, least recently used first."""
        spare = [
            self._bundles / directory.name
            for directory in self._bundles.iterdir()
            if directory.name not in keep and isinstance(self.manifest(directory.name), AdapterManifest)
        ]
        return sorted(spare, key=lambda directory: directory.stat().st_mtime_ns)

    def _evict(self, directory: Path) -> None:
        _remove_bundle(directory)
        log.info("store.bundle_removed", digest=directory.name)

    def _directories(self) -> list[Path]:
        return [directory for place in (self._bundles, self._partial) for directory in place.iterdir()]

    def free_bytes(self) -> int:
        """Bytes free on the disk."""
        return shutil.disk_usage(self._bundles).free


def _places_of(directory: Path, name: str) -> tuple[Path, Path]:
    """Where a file of a bundle lies: whole, or on its way."""
    return directory / name, directory / f"{name}.part"


def _wrong_files(directory: Path, manifest: Manifest) -> list[str]:
    """Names of files that are missing or do not have their size and SHA-256. Reads them all."""
    return [entry.path for entry in manifest.files if not _is_right(directory / entry.path, entry)]


def _is_right(path: Path, entry: FileEntry) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == entry.size_bytes and sha256_file(path) == entry.sha256
    return False


def _demote(directory: Path, names: Iterable[str]) -> None:
    """Make parts of files. One that other bundles share is left to them."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            if (directory / name).stat().st_nlink > 1:
                (directory / name).unlink()
            else:
                (directory / name).rename(directory / f"{name}.part")


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * _BLOCK_BYTES if path.is_file() else 0


def _remove_bundle(directory: Path) -> None:
    """Manifest first: a directory without one counts as not there, so a kill in between leaves no half bundle."""
    with contextlib.suppress(OSError):
        (directory / MANIFEST_NAME).unlink()
    shutil.rmtree(directory, ignore_errors=True)
