"""How the catalogue looks in JSON, and what bodies may hold. Knows no rules beyond the shape of a value."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from registry.errors import InvalidVersionError
from registry.models import (
    MAX_NAME_LENGTH,
    NAME_PATTERN,
    Alias,
    Artifact,
    ArtifactKind,
    Publication,
    Release,
    ReleaseFile,
    validate_name,
)
from registry.uploads import current_offset
from registry.versions import MAX_LENGTH, PATTERN, parse_version

_SHA256_PATTERN = r"^[0-9a-f]{64}\Z"


class StrictSerializer(serializers.Serializer[Any]):
    """A body that holds a field nobody knows is refused: it is a misspelt one."""

    def to_internal_value(self, data: Any) -> Any:
        """The values, or a `ValidationError` for each unknown field."""
        if isinstance(data, dict) and (unknown := sorted(set(map(str, data)) - set(self.fields))):
            known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
            raise serializers.ValidationError({name[:80]: [f"Unknown field. Known are: {known}."] for name in unknown})
        return super().to_internal_value(data)


@extend_schema_field({"type": "string", "maxLength": MAX_LENGTH, "pattern": f"^{PATTERN}$"})
class VersionField(serializers.CharField):
    """A semantic version."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=MAX_LENGTH, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        """The text, if it is a version; raises `InvalidVersionError`, which says how one looks."""
        text = super().to_internal_value(data)
        try:
            parse_version(text)
        except InvalidVersionError as error:
            error.fields = {str(self.field_name): [error.detail]}
            raise
        return text


class AnnouncementSerializer(StrictSerializer):
    """What somebody wants to publish, and the archive that they will send."""

    kind = serializers.ChoiceField(choices=ArtifactKind.choices)
    name = serializers.RegexField(
        NAME_PATTERN, max_length=MAX_NAME_LENGTH, error_messages={"invalid": validate_name.message}
    )
    version = VersionField(help_text="Semantic version, for instance 1.2.0 or 1.3.0-rc.1.")
    base = serializers.CharField(
        required=False, max_length=160, help_text="Adapters only: name@version, name@alias, name or digest of the base."
    )
    notes = serializers.CharField(required=False, allow_blank=True, max_length=65536, default="")
    sha256 = serializers.RegexField(_SHA256_PATTERN, help_text="Of the archive, as sha256sum prints it.")
    size_bytes = serializers.IntegerField(min_value=1, max_value=2**63 - 1)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """An adapter has a base, a base has none."""
        if attrs["kind"] == ArtifactKind.ADAPTER and "base" not in attrs:
            raise serializers.ValidationError({"base": ["Name the base release that the adapter was trained on."]})
        if attrs["kind"] == ArtifactKind.BASE and "base" in attrs:
            raise serializers.ValidationError({"base": ["A base model has no base."]})
        return attrs


class YankSerializer(StrictSerializer):
    """Why a release is withdrawn."""

    reason = serializers.CharField(max_length=1024)


class NotesSerializer(StrictSerializer):
    """New notes of a release."""

    notes = serializers.CharField(allow_blank=True, max_length=65536)


class DescriptionSerializer(StrictSerializer):
    """What an artifact is for."""

    description = serializers.CharField(allow_blank=True, max_length=4096)


class AliasTargetSerializer(StrictSerializer):
    """The version that an alias shall stand for."""

    version = VersionField()


class ReleaseRefSerializer(serializers.ModelSerializer[Release]):
    """A release, named."""

    name = serializers.CharField(read_only=True)

    class Meta:
        model = Release
        fields = ["name", "version", "digest"]
        read_only_fields = fields


class ReleaseFileSerializer(serializers.ModelSerializer[ReleaseFile]):
    """One file of a release."""

    class Meta:
        model = ReleaseFile
        fields = ["path", "sha256", "size_bytes"]
        read_only_fields = fields


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    """A release with what people ask about it."""

    name = serializers.CharField(read_only=True)
    kind = serializers.ChoiceField(choices=ArtifactKind.choices, read_only=True)
    base = ReleaseRefSerializer(read_only=True, allow_null=True)
    aliases = serializers.SlugRelatedField("name", many=True, read_only=True)
    files = ReleaseFileSerializer(many=True, read_only=True)
    report = serializers.DictField(read_only=True, help_text="Architecture and agreement, or modules and ranks.")

    class Meta:
        model = Release
        fields = [
            "name",
            "version",
            "kind",
            "digest",
            "size_bytes",
            "state",
            "base",
            "aliases",
            "notes",
            "report",
            "files",
            "published_by",
            "published_at",
            "yanked_at",
            "yank_reason",
        ]
        read_only_fields = fields


class ProblemSerializer(serializers.Serializer[Any]):
    """What stopped a publication."""

    code = serializers.CharField(help_text="Stable, for programs.")
    title = serializers.CharField()
    detail = serializers.CharField()
    hint = serializers.CharField(help_text="What to try next.")


class UploadSerializer(serializers.Serializer[Any]):
    """Where the archive goes."""

    url = serializers.CharField()
    offset_bytes = serializers.IntegerField(help_text="Bytes that are here; send from there on.")
    size_bytes = serializers.IntegerField()
    expires_at = serializers.DateTimeField()


class PublicationSerializer(serializers.ModelSerializer[Publication]):
    """How far a publication is."""

    base = ReleaseRefSerializer(read_only=True, allow_null=True)
    upload = serializers.SerializerMethodField()
    problem = ProblemSerializer(read_only=True, allow_null=True)
    release = ReleaseRefSerializer(read_only=True, allow_null=True)

    class Meta:
        model = Publication
        fields = [
            "id",
            "kind",
            "name",
            "version",
            "base",
            "notes",
            "state",
            "step",
            "progress",
            "upload",
            "problem",
            "release",
            "created_by",
            "created_at",
            "finished_at",
        ]
        read_only_fields = fields

    @extend_schema_field(UploadSerializer(allow_null=True))
    def get_upload(self, publication: Publication) -> dict[str, Any] | None:
        """None once the archive is not needed any more."""
        upload = publication.upload
        if upload is None:
            return None
        shown = {
            "url": reverse("upload", args=[upload.pk]),
            "offset_bytes": current_offset(upload),
            "size_bytes": upload.size_bytes,
            "expires_at": upload.expires_at,
        }
        return UploadSerializer(shown).data


class AliasSerializer(serializers.ModelSerializer[Alias]):
    """A movable name for a release."""

    version = serializers.CharField(source="release.version", read_only=True)
    digest = serializers.CharField(source="release.digest", read_only=True)

    class Meta:
        model = Alias
        fields = ["name", "version", "digest", "updated_by", "updated_at"]
        read_only_fields = fields


class ArtifactSerializer(serializers.ModelSerializer[Artifact]):
    """A name with its releases counted."""

    num_releases = serializers.IntegerField(read_only=True)
    newest_version = serializers.CharField(read_only=True, allow_null=True)
    aliases = AliasSerializer(many=True, read_only=True)

    class Meta:
        model = Artifact
        fields = ["name", "kind", "description", "created_at", "num_releases", "newest_version", "aliases"]
        read_only_fields = fields
