"""The catalogue's rows. Rules about a row's shape stand here as constraints; `actions` and `publications` write them.

Knows nothing of files: a `ReleaseFile` names its content by SHA-256, and `storage` has the bytes.
"""

from __future__ import annotations

import uuid

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q

from registry import versions
from registry.states import HOLDS_VERSION, PublicationState

MAX_NAME_LENGTH = 63  # one less than a digest, so that a name never looks like one
NAME_PATTERN = r"^[a-z0-9]+(?:[-._][a-z0-9]+)*\Z"

validate_name = RegexValidator(
    NAME_PATTERN, "Use lower-case letters, digits, and single dashes, dots or underscores between them."
)


class ArtifactKind(models.TextChoices):
    """What an artifact's releases are."""

    BASE = "base", "Base model"
    ADAPTER = "adapter", "Adapter"


class ReleaseState(models.TextChoices):
    """A yanked release keeps its files for the devices that have it, and is given to no others."""

    PUBLISHED = "published", "Published"
    YANKED = "yanked", "Yanked"


class Artifact(models.Model):
    """A name under which releases are published. It appears with its first release."""

    kind = models.CharField(max_length=16, choices=ArtifactKind)
    name = models.CharField(max_length=MAX_NAME_LENGTH, unique=True, validators=[validate_name])
    description = models.TextField(blank=True, default="", max_length=4096)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Release(models.Model):
    """An immutable version of an artifact: the exact bytes of its manifest, and the files that it lists.

    `digest` is the SHA-256 of `manifest`. Two versions with the same content have the same digest. `index_sha256` names
    the blob with the chunk index; "" as long as there is none, which is so for releases from before there were indexes.
    """

    artifact = models.ForeignKey(Artifact, on_delete=models.PROTECT, related_name="releases")
    version = models.CharField(max_length=versions.MAX_LENGTH)
    version_key = models.CharField(max_length=versions.MAX_SORT_KEY_LENGTH, editable=False)
    is_prerelease = models.BooleanField(default=False, editable=False)
    digest = models.CharField(max_length=64, db_index=True)
    manifest = models.BinaryField()
    index_sha256 = models.CharField(max_length=64, blank=True, default="")
    size_bytes = models.PositiveBigIntegerField()
    base = models.ForeignKey("self", on_delete=models.PROTECT, null=True, blank=True, related_name="adapters")
    state = models.CharField(max_length=16, choices=ReleaseState, default=ReleaseState.PUBLISHED)
    notes = models.TextField(blank=True, default="", max_length=65536)
    report = models.JSONField(default=dict)
    published_by = models.CharField(max_length=150)
    published_at = models.DateTimeField(auto_now_add=True, db_index=True)
    yanked_at = models.DateTimeField(null=True, blank=True)
    yank_reason = models.TextField(blank=True, default="", max_length=1024)

    class Meta:
        ordering = ["artifact__name", "-version_key"]
        constraints = [models.UniqueConstraint(fields=["artifact", "version"], name="release_version_once")]
        indexes = [models.Index(fields=["artifact", "state", "-version_key"], name="release_newest")]

    def __str__(self) -> str:
        return self.ref

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.artifact.name

    @property
    def kind(self) -> str:
        """The artifact's kind."""
        return self.artifact.kind

    @property
    def ref(self) -> str:
        """`name@version`, as people write it."""
        return f"{self.artifact.name}@{self.version}"

    @property
    def is_yanked(self) -> bool:
        """Whether it was withdrawn."""
        return self.state == ReleaseState.YANKED


class ReleaseFile(models.Model):
    """One file of a release, without the manifest; its bytes are the blob of that SHA-256.

    The object is what the chunk index points into: the same blob, or one with packed chunks. "" and 0 without an index.
    """

    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="files")
    path = models.CharField(max_length=128)
    sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.PositiveBigIntegerField()
    object_sha256 = models.CharField(max_length=64, blank=True, default="", db_index=True)
    object_size_bytes = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["release", "path"], name="release_path_once")]

    def __str__(self) -> str:
        return self.path


class Alias(models.Model):
    """A movable name such as `stable` for one of an artifact's releases."""

    artifact = models.ForeignKey(Artifact, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=MAX_NAME_LENGTH, validators=[validate_name])
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="aliases")
    updated_by = models.CharField(max_length=150)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["artifact", "name"], name="alias_once")]

    def __str__(self) -> str:
        return f"{self.artifact_id}@{self.name}"


class Upload(models.Model):
    """An archive on its way in. `offset_bytes` mirrors the length of the partial file, for people to see."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.PositiveBigIntegerField()
    offset_bytes = models.PositiveBigIntegerField(default=0)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return str(self.id)


class Publication(models.Model):
    """The way of one archive from upload to release, or to the problem that stopped it.

    `attempt` counts how often a worker took it up and tells that worker's writes from those of one taken for dead.
    `heartbeat_at` is when a worker was last known to have it in hand, or a message was last sent to one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=16, choices=ArtifactKind)
    name = models.CharField(max_length=MAX_NAME_LENGTH, validators=[validate_name])
    version = models.CharField(max_length=versions.MAX_LENGTH)
    base_ref = models.CharField(max_length=160, blank=True, default="")
    base = models.ForeignKey(Release, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    notes = models.TextField(blank=True, default="", max_length=65536)
    archive_sha256 = models.CharField(max_length=64)
    archive_size_bytes = models.PositiveBigIntegerField()
    upload = models.OneToOneField(Upload, on_delete=models.SET_NULL, null=True, blank=True, related_name="publication")
    state = models.CharField(max_length=16, choices=PublicationState, default=PublicationState.UPLOADING, db_index=True)
    step = models.CharField(max_length=120, blank=True, default="")
    progress = models.FloatField(default=0.0)
    problem = models.JSONField(null=True, blank=True)
    release = models.ForeignKey(Release, on_delete=models.PROTECT, null=True, blank=True, related_name="publications")
    attempt = models.PositiveSmallIntegerField(default=0)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["name", "version"],
                condition=Q(state__in=sorted(HOLDS_VERSION)),
                name="publication_version_once",
            )
        ]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class TrustMetadata(models.Model):
    """One version of a TUF role's metadata, byte for byte. Staged until enough keys have signed it; see `trust`."""

    role = models.CharField(max_length=MAX_NAME_LENGTH)
    version = models.PositiveIntegerField()
    content = models.BinaryField()
    is_published = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["role", "-version"]
        constraints = [models.UniqueConstraint(fields=["role", "version"], name="trust_metadata_once")]

    def __str__(self) -> str:
        return f"{self.version}.{self.role}"


class TrustTarget(models.Model):
    """A TUF target's content, by its path and hash. What is a target now stands in the metadata."""

    path = models.CharField(max_length=256)
    sha256 = models.CharField(max_length=64)
    content = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["path", "sha256"], name="trust_target_once")]

    def __str__(self) -> str:
        return self.path
