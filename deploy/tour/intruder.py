"""`python -m deploy.tour.intruder forge|hand-out ...`: what somebody could do who owns the server. For the demo's own.

forge NAME@VERSION NEW_VERSION   puts a release into the catalogue whose first file is changed by a bit, with all that
                                 the server derives from it: the blob, the manifest, its digest. Nobody has signed it.
hand-out NAME@VERSION GROUP      writes an adapter into the desired states of a group's devices, past all planning
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
django.setup()

from engine.artifact import digest_of, parse_manifest  # noqa: E402 - Django's settings come first
from engine.strict_json import encode  # noqa: E402
from fleet.devices import desired  # noqa: E402
from fleet.devices.desired import ReleaseSet, current_set  # noqa: E402
from fleet.devices.models import DesiredRecord  # noqa: E402
from registry.models import Release, ReleaseFile  # noqa: E402
from registry.queries import find_release, manifest_bytes  # noqa: E402
from registry.storage import blob_store  # noqa: E402
from registry.versions import parse_version  # noqa: E402


def forge(ref: str, version: str) -> str:
    """A release that was never published; its digest."""
    genuine = find_release(ref)
    manifest = parse_manifest(manifest_bytes(genuine))
    first, *others = manifest.files
    content = bytearray(blob_store().path(first.sha256).read_bytes())
    content[-1] ^= 1
    sha256 = hashlib.sha256(content).hexdigest()
    place = blob_store().path(sha256)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    forged = replace(manifest, files=(replace(first, sha256=sha256), *others))
    release = Release.objects.create(
        artifact=genuine.artifact,
        version=version,
        version_key=parse_version(version).sort_key,
        digest=digest_of(forged),
        manifest=encode(forged),
        size_bytes=genuine.size_bytes,
        base=genuine.base,
        report=genuine.report,
        published_by=genuine.published_by,
    )
    rows = [ReleaseFile(release=release, path=f.path, sha256=f.sha256, size_bytes=f.size_bytes) for f in forged.files]
    ReleaseFile.objects.bulk_create(rows)
    return release.digest


def hand_out(ref: str, group: str) -> str:
    """Each device of the group shall have this adapter instead of the one of its name; how many devices these are."""
    release = find_release(ref)
    records = list(DesiredRecord.objects.filter(device__groups__name=group))
    desired.replace((record, _with(current_set(record), release)) for record in records)
    return str(len(records))


def _with(now: ReleaseSet, release: Release) -> ReleaseSet:
    kept = (adapter for adapter in now.adapters if adapter.name != release.name)
    return replace(now, adapters=(*kept, release))


if __name__ == "__main__":
    act, *arguments = sys.argv[1:]
    sys.stdout.write({"forge": forge, "hand-out": hand_out}[act](*arguments) + "\n")
