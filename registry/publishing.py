"""What a worker does with a publication: unpack, convert, publish. Reads as those steps; rows change in `publications`.

Everything happens in scratch space that goes away whatever comes. A publication ends published, or failed with a
problem that says what to mend, or, if the worker dies, it is found again by the sweep.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings

from engine.artifact import check_fits, read_adapter, read_base
from engine.convert import convert_adapter, convert_base
from engine.errors import InvalidInputError
from registry import publications
from registry.archives import Limits, unpack
from registry.chunking import index_bundle
from registry.errors import RegistryError
from registry.garbage import collect_garbage, staging_name
from registry.heartbeat import heartbeat
from registry.indexes import lay_out
from registry.models import ArtifactKind, Publication
from registry.publications import Claim, SupersededError
from registry.storage import blob_store, remove_tree, sync_file

Progress = Callable[[str, float], None]

_UNPACKED_SHARE = 0.1
_CONVERTED_SHARE = 0.95
_PROGRESS_INTERVAL_S = 0.3

_log = structlog.get_logger(__name__)


class TimeLimitError(RegistryError):
    """The conversion took longer than a worker may."""

    code = "time_limit"
    title = "The conversion took too long"
    default_hint = "Publish again when the server is less busy, or raise the time limit of registry.tasks."


class StorageFullError(RegistryError):
    """The server's disk is full."""

    code = "storage_full"
    title = "The server has no space left"
    default_hint = "Make room in the server's blob directory, then publish again."


class InternalError(RegistryError):
    """Our bug, or a machine in trouble."""

    code = "internal_error"
    title = "The server failed"
    default_hint = "Publish again; if it fails again, the worker's log names the reason under the publication's id."


def process(publication_id: UUID) -> None:
    """Work on a publication if it is queued. Safe to call at any time, any number of times."""
    claim = publications.claim(publication_id=publication_id)
    if claim is None:
        return
    with heartbeat(claim):
        try:
            with _scratch(claim) as scratch:
                _unpack_convert_publish(claim, scratch)
        except SupersededError:
            _log.info("publication.superseded", publication=str(publication_id), attempt=claim.attempt)
        except Exception as error:  # noqa: BLE001 - each ends the publication; our own bugs are logged with their trace
            publications.fail(claim=claim, problem=_problem(error, publication_id))
    collect_garbage()


def _unpack_convert_publish(claim: Claim, scratch: Path) -> None:
    publication = Publication.objects.select_related("upload", "base__artifact").get(pk=claim.publication_id)
    report = _Progress(claim)
    source = _unpack(publication, scratch / "source", report.share(0.0, _UNPACKED_SHARE))
    publications.begin_conversion(claim=claim)
    bundle = _convert(publication, source, scratch, report.share(_UNPACKED_SHARE, _CONVERTED_SHARE))
    publications.advance(claim=claim, step="storing", progress=_CONVERTED_SHARE)
    for path in bundle.iterdir():
        sync_file(path)
    release = publications.publish(claim=claim, bundle=bundle, indexed=index_bundle(bundle, scratch / "objects"))
    _log.info("publication.published", publication=str(publication.pk), release=release.pk, digest=release.digest)


def _unpack(publication: Publication, target: Path, on_progress: Progress) -> Path:
    if publication.upload is None:
        raise SupersededError(f"{publication.pk} has no upload any more")
    archive = blob_store().path(publication.upload.sha256)
    limits = Limits(max_total_bytes=settings.SOCLE_MAX_UPLOAD_BYTES)
    return unpack(archive, target, limits=limits, on_progress=lambda share: on_progress("unpacking", share))


def _convert(publication: Publication, source: Path, scratch: Path, on_progress: Progress) -> Path:
    """The bundle made from `source`, verified against the base that it is for."""
    bundle = scratch / "bundle"
    if publication.kind == ArtifactKind.BASE or publication.base is None:
        convert_base(source, bundle, on_progress=on_progress)
        return bundle
    base_bundle = lay_out(publication.base, scratch / "base")
    convert_adapter(source, base_bundle, bundle, on_progress=on_progress)
    check_fits(read_adapter(bundle)[0], *read_base(base_bundle))
    return bundle


@contextmanager
def _scratch(claim: Claim) -> Iterator[Path]:
    directory = blob_store().staging_directory(staging_name(claim.publication_id, claim.attempt))
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        remove_tree(directory)


def _problem(error: Exception, publication_id: UUID) -> dict[str, str]:
    """What people are told. Only the last case is unexpected."""
    match error:
        case RegistryError():
            return error.problem()
        case InvalidInputError():
            hint = getattr(error, "hint", "")
            return {"code": error.code, "title": _title(error.code), "detail": str(error), "hint": hint}
        case SoftTimeLimitExceeded():
            return TimeLimitError("the conversion was stopped at the worker's time limit").problem()
        case OSError(errno=errno.ENOSPC):
            return StorageFullError("the disk filled up during the conversion").problem()
    _log.error("publication.crashed", publication=str(publication_id), exc_info=error)
    return InternalError(f"{type(error).__name__} while converting").problem()


def _title(code: str) -> str:
    """`shape_mismatch` -> `Shape mismatch`."""
    return code.replace("_", " ").capitalize()


class _Progress:
    """Writes how far the work is, but not with each of the many calls."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._next_at_s = 0.0

    def share(self, start: float, end: float) -> Progress:
        """A listener for a part of the work that begins and ends at these shares of the whole."""
        return lambda step, fraction: self._show(step, start + (end - start) * fraction)

    def _show(self, step: str, progress: float) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_at_s:
            self._next_at_s = now_s + _PROGRESS_INTERVAL_S
            publications.advance(claim=self._claim, step=step, progress=progress)
