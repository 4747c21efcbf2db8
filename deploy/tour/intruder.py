"""`python -m deploy.tour.intruder NAME@VERSION NEW_VERSION`: what somebody could do who owns the server.

Puts a release into the catalogue whose first file is changed by a bit, with all that the server derives from it: the
blob, the manifest, its digest. No publisher has signed it. Prints the digest. For the demo's own server only.
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
from registry.models import Release, ReleaseFile  # noqa: E402
from registry.queries import find_release, manifest_bytes  # noqa: E402
from registry.storage import blob_store  # noqa: E402
from registry.versions import parse_version  # noqa: E402


def tamper(ref: str, version: str) -> str:
    """The digest of the forged release."""
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


if __name__ == "__main__":
    sys.stdout.write(tamper(*sys.argv[1:]) + "\n")
