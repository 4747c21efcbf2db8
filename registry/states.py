"""The life of a publication, as data. Pure: `registry.publications` moves the rows."""

from __future__ import annotations

from django.db.models import TextChoices


class PublicationState(TextChoices):
    """Where a publication is."""

    UPLOADING = "uploading", "Uploading"
    QUEUED = "queued", "Queued"
    VALIDATING = "validating", "Validating"
    CONVERTING = "converting", "Converting"
    PUBLISHED = "published", "Published"
    FAILED = "failed", "Failed"


_S = PublicationState

TRANSITIONS: dict[PublicationState, frozenset[PublicationState]] = {
    _S.UPLOADING: frozenset({_S.QUEUED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.VALIDATING, _S.FAILED}),
    _S.VALIDATING: frozenset({_S.CONVERTING, _S.QUEUED, _S.FAILED}),  # back to queued: its worker died
    _S.CONVERTING: frozenset({_S.PUBLISHED, _S.QUEUED, _S.FAILED}),
    _S.PUBLISHED: frozenset(),
    _S.FAILED: frozenset(),
}

RUNNING = frozenset({_S.VALIDATING, _S.CONVERTING})
"""A worker has it in hand."""

UNFINISHED = frozenset({_S.UPLOADING, _S.QUEUED}) | RUNNING

HOLDS_VERSION = frozenset({_S.QUEUED, _S.PUBLISHED}) | RUNNING
"""Nobody else may publish other content under the same name and version."""


def sources(target: PublicationState) -> frozenset[PublicationState]:
    """The states from which `target` can be reached."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)
