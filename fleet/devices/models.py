"""Rows about devices: who they are, what they last said they have, and what they shall have.

Knows releases by foreign key, nothing of rollouts. A device's report is kept as it came; the columns beside it are
what lists filter and count by.
"""

import secrets

from django.db import models

from registry.models import Release

MAX_NAME_LENGTH = 100
MAX_TAG_LENGTH = 63


def new_device_id() -> str:
    """An id that is not a count of devices."""
    return f"dev_{secrets.token_hex(8)}"


class DeviceState(models.TextChoices):
    """A revoked device keeps its row for the history, and is refused at the door."""

    ENROLLED = "enrolled", "Enrolled"
    REVOKED = "revoked", "Revoked"


class DeviceGroup(models.Model):
    """Devices that get the same rollouts and keep to the same limits.

    `limits` are those that operators set, by name (see `fleet.devices.limits`). `limits_version` counts their changes,
    `limits_applied` is the one that has reached all devices' documents.
    """

    name = models.SlugField(max_length=63, unique=True)
    description = models.CharField(max_length=500, blank=True, default="")
    limits = models.JSONField(default=dict)
    limits_version = models.PositiveIntegerField(default=0)
    limits_applied = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Device(models.Model):
    """One enrolled device. `report` is its last `DeviceReport` as JSON, null before the first."""

    id = models.CharField(primary_key=True, max_length=32, default=new_device_id, editable=False)
    name = models.CharField(max_length=MAX_NAME_LENGTH)
    public_key = models.CharField(max_length=44, unique=True)
    state = models.CharField(max_length=16, choices=DeviceState, default=DeviceState.ENROLLED)
    groups = models.ManyToManyField(DeviceGroup, related_name="devices", blank=True)
    hardware = models.JSONField(default=dict)
    agent_version = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    last_seen_at = models.DateTimeField(null=True, db_index=True)
    revoked_at = models.DateTimeField(null=True)
    report = models.JSONField(null=True)
    reported_at = models.DateTimeField(null=True)
    update_state = models.CharField(max_length=16, blank=True)
    revision = models.PositiveBigIntegerField(default=0)
    target_revision = models.PositiveBigIntegerField(default=0)
    problem_code = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    @property
    def tags(self) -> list[str]:
        """The tags by name; without a query where `tag_rows` was prefetched."""
        return sorted(row.tag for row in self.tag_rows.all())


class DeviceTag(models.Model):
    """A free label of one device. A table of its own, so that every database can look devices up by it."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="tag_rows")
    tag = models.CharField(max_length=MAX_TAG_LENGTH)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["device", "tag"], name="device_tag_once")]
        indexes = [models.Index(fields=["tag"])]

    def __str__(self) -> str:
        return self.tag


class InstalledRelease(models.Model):
    """An index of the reports: which device serves which release. Versions are what the device said they are."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="installed")
    is_base = models.BooleanField()
    name = models.CharField(max_length=63)
    version = models.CharField(max_length=64)
    digest = models.CharField(max_length=64, db_index=True)

    class Meta:
        ordering = ["-is_base", "name"]
        indexes = [models.Index(fields=["is_base", "name", "version"])]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class DesiredRecord(models.Model):
    """What one device shall have. `document` is the answer to its poll, byte for byte; the keys beside it are the same.

    `revision` only grows, so a device never takes an older document for a newer one. `set_revision` is the one that
    brought the present releases; later ones have changed limits alone.
    """

    device = models.OneToOneField(Device, on_delete=models.CASCADE, primary_key=True, related_name="desired")
    revision = models.PositiveBigIntegerField(default=0)
    set_revision = models.PositiveBigIntegerField(default=0)
    document = models.BinaryField()
    etag = models.CharField(max_length=80)
    base = models.ForeignKey(Release, on_delete=models.PROTECT, null=True, related_name="desired_as_base")
    adapters = models.ManyToManyField(Release, related_name="desired_as_adapter")
    limits = models.JSONField(default=dict)
    updated_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.device_id} revision {self.revision}"


class EnrolmentToken(models.Model):
    """A token that lets one device in, once. Only its hash is kept."""

    token_hash = models.CharField(max_length=64, unique=True)
    prefix = models.CharField(max_length=16)
    group = models.ForeignKey(DeviceGroup, on_delete=models.SET_NULL, null=True, related_name="+")
    tags = models.JSONField(default=list)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    used_by = models.ForeignKey(Device, on_delete=models.SET_NULL, null=True, related_name="+")

    def __str__(self) -> str:
        return f"{self.prefix}…"


class DeviceEvent(models.Model):
    """One line of a device's timeline. Rows are only added."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    actor = models.CharField(max_length=160)
    kind = models.CharField(max_length=40)
    detail = models.JSONField(default=dict)

    class Meta:
        ordering = ["-at", "-pk"]
        indexes = [models.Index(fields=["device", "-at", "-id"])]

    def __str__(self) -> str:
        return f"{self.kind} at {self.at:%F %T}"


class SeenNonce(models.Model):
    """A nonce of a signed request that changed something; see `fleet.device_api.signing`."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="+")
    nonce = models.CharField(max_length=32)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["device", "nonce"], name="device_nonce_once")]

    def __str__(self) -> str:
        return self.nonce
