"""Bundles on the device's disk: which are whole, which are on their way, and which may go.

    bundles/<digest>/          whole and verified; never changed
    partial/<digest>/          manifest.json, finished files, and <file>.part while it comes in

A directory moves from `partial` to `bundles` by one rename, after every file was read again and verified. Knows
manifests and digests, not where the bytes come from or who wants them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import structlog

from edge_agent.journal import replace_file, sync_directory
from engine.artifact import MANIFEST_NAME, FileEntry, Manifest, parse_manifest, read_manifest, verify_files
from engine.errors import BundleError

log = structlog.get_logger()


class Store:
    """All bundle directories under one state directory."""

    def __init__(self, directory: Path) -> None:
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
        """Bytes that are still to come, less what has come of unfinished files."""
        missing = self.missing_files(digest, manifest)
        arrived = (self.incoming(digest, entry) for entry in missing)
        return sum(e.size_bytes for e in missing) - sum(p.stat().st_size for p in arrived if p.is_file())

    def incoming(self, digest: str, entry: FileEntry) -> Path:
        """Where a file grows while it comes in."""
        return self._partial / digest / f"{entry.path}.part"

    def finish_file(self, digest: str, entry: FileEntry) -> None:
        """Give a file that has come in, and whose hash was right, its name."""
        incoming = self.incoming(digest, entry)
        with incoming.open("rb") as file:
            os.fsync(file.fileno())
        incoming.rename(self._partial / digest / entry.path)

    def reuse_file(self, digest: str, entry: FileEntry) -> bool:
        """Take a file with the same content from another bundle instead of fetching it; verified later as any other."""
        source = next(self._files_with(entry), None)
        if source is None:
            return False
        target = self._partial / digest / entry.path
        target.unlink(missing_ok=True)
        os.link(source, target)
        return True

    def _files_with(self, wanted: FileEntry) -> Iterator[Path]:
        for directory in self._bundles.iterdir():
            manifest = self.manifest(directory.name)
            for entry in manifest.files if manifest else ():
                if (entry.sha256, entry.size_bytes) == (wanted.sha256, wanted.size_bytes):
                    yield directory / entry.path

    def complete(self, digest: str) -> None:
        """Read every file again, then move the directory in place; raises `BundleError` and forgets what is wrong."""
        if self.holds(digest):
            return
        directory = self._partial / digest
        try:
            manifest, _ = read_manifest(directory)
            verify_files(directory, manifest)
        except BundleError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        sync_directory(directory)
        directory.rename(self._bundles / digest)
        sync_directory(self._bundles)

    def drop_damaged(self, digests: Collection[str]) -> list[str]:
        """Verify whole bundles and remove those that do not match any more; returns what was removed."""
        damaged = []
        for digest in digests:
            try:
                manifest, _ = read_manifest(self._bundles / digest)
                verify_files(self._bundles / digest, manifest)
            except BundleError as error:
                log.warning("store.bundle_damaged", digest=digest, error=str(error))
                shutil.rmtree(self._bundles / digest, ignore_errors=True)
                damaged.append(digest)
        return damaged

    def collect(self, keep: Collection[str]) -> int:
        """Remove every bundle, whole or partial, that is not to be kept; returns how many went."""
        doomed = [d for place in (self._bundles, self._partial) for d in place.iterdir() if d.name not in keep]
        for directory in doomed:
            _remove_bundle(directory)
            log.info("store.bundle_removed", digest=directory.name)
        return len(doomed)

    def free_bytes(self) -> int:
        """Bytes free on the disk."""
        return shutil.disk_usage(self._bundles).free


def _remove_bundle(directory: Path) -> None:
    """Manifest first: a directory without one counts as not there, so a kill in between leaves no half bundle."""
    with contextlib.suppress(OSError):
        (directory / MANIFEST_NAME).unlink()
    shutil.rmtree(directory, ignore_errors=True)
