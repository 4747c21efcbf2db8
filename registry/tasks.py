"""What Celery runs: thin shells around `publishing` and the sweep. Each is safe to repeat and to lose.

A message carries an id at most; what is to be done stands in the database, where the sweep finds it again.
"""

from __future__ import annotations

from uuid import UUID

from celery import shared_task
from django.core.cache import cache
from django.utils import timezone

from registry import indexes, publications, publishing
from registry.garbage import collect_garbage as collect
from registry.models import Release
from registry.trust.repository import refresh_due

SOFT_TIME_LIMIT_S = 3300
TIME_LIMIT_S = 3400
MESSAGE_LIFETIME_S = 60
"""A message that nobody took for so long is void; the sweep has sent others meanwhile, and they must not pile up."""


@shared_task(acks_late=True, ignore_result=True, soft_time_limit=SOFT_TIME_LIMIT_S, time_limit=TIME_LIMIT_S)
def process_publication(publication_id: str) -> None:
    """Unpack, convert and publish, if the publication is queued."""
    publishing.process(UUID(publication_id))


@shared_task(acks_late=True, ignore_result=True, soft_time_limit=SOFT_TIME_LIMIT_S, time_limit=TIME_LIMIT_S)
def make_index(digest: str) -> None:
    """Make the chunk index of a release that has none yet."""
    release = Release.objects.filter(digest=digest).first()
    if release is not None:
        indexes.ensure_index(release)


def send_for_index(digest: str) -> None:
    """Tell a worker that somebody waits for this release's index; once a minute is enough."""
    if cache.add(f"index:{digest}", 1, timeout=MESSAGE_LIFETIME_S):
        make_index.apply_async((digest,), expires=MESSAGE_LIFETIME_S)


def send_to_worker(publication_id: UUID) -> None:
    """Tell a worker that the publication is queued."""
    process_publication.apply_async((str(publication_id),), expires=MESSAGE_LIFETIME_S)


@shared_task(ignore_result=True)
def sweep() -> None:
    """Find publications whose worker died or whose message was lost, and uploads that were left alone."""
    now = timezone.now()
    for publication_id in publications.requeue_stalled(now=now):
        send_to_worker(publication_id)
    if publications.fail_expired(now=now):
        collect()


@shared_task(ignore_result=True)
def collect_garbage() -> None:
    """Remove bytes that no row names, as a kill at the wrong moment leaves them."""
    collect()


@shared_task(ignore_result=True)
def refresh_trust() -> None:
    """Sign snapshot and timestamp anew before they expire."""
    refresh_due()
