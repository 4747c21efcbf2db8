"""Which query parameters narrow a list, and what they mean."""

from __future__ import annotations

import django_filters
from django.db.models import QuerySet

from registry import queries
from registry.models import Artifact, ArtifactKind, Publication, Release, ReleaseState
from registry.states import PublicationState


class ReleaseFilter(django_filters.FilterSet):
    """Of releases."""

    kind = django_filters.ChoiceFilter(field_name="artifact__kind", choices=ArtifactKind.choices)
    name = django_filters.CharFilter(field_name="artifact__name", label="Name of the artifact.")
    state = django_filters.ChoiceFilter(choices=ReleaseState.choices)
    search = django_filters.CharFilter(method="matching", label="Words in name, description, version or notes.")
    fits = django_filters.CharFilter(method="fitting", label="Only adapters for this base: a reference or a digest.")

    class Meta:
        model = Release
        fields: list[str] = []

    def matching(self, found: QuerySet[Release], _name: str, words: str) -> QuerySet[Release]:
        """Every word stands somewhere."""
        return found.filter(queries.mentions(words))

    def fitting(self, found: QuerySet[Release], _name: str, ref: str) -> QuerySet[Release]:
        """Adapters made for the base's content."""
        return found.filter(queries.fits(queries.resolve_release(ref, kind=ArtifactKind.BASE)))


class ArtifactFilter(django_filters.FilterSet):
    """Of artifacts."""

    kind = django_filters.ChoiceFilter(choices=ArtifactKind.choices)
    search = django_filters.CharFilter(method="matching", label="Text in name or description.")

    class Meta:
        model = Artifact
        fields: list[str] = []

    def matching(self, found: QuerySet[Artifact], _name: str, text: str) -> QuerySet[Artifact]:
        """The text stands in name or description."""
        return found.filter(queries.artifact_mentions(text))


class PublicationFilter(django_filters.FilterSet):
    """Of publications."""

    state = django_filters.ChoiceFilter(choices=PublicationState.choices)
    name = django_filters.CharFilter()

    class Meta:
        model = Publication
        fields: list[str] = []
