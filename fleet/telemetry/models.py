"""Rows of telemetry: one per device, minute, metric and model, each a mergeable distribution."""

from django.db import models

from fleet.devices.models import Device

MAX_NAME_LENGTH = 63


class TelemetryBatchRecord(models.Model):
    """A batch that was taken; its id is never taken again from the same device."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="+")
    batch_id = models.CharField(max_length=64)
    num_rows = models.PositiveIntegerField()
    num_refused = models.PositiveIntegerField(default=0)
    received_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["device", "batch_id"], name="telemetry_batch_once")]

    def __str__(self) -> str:
        return self.batch_id


class TelemetryRow(models.Model):
    """One `protocol.Sample`. Several rows may share device, minute and metric: queries merge them."""

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="telemetry_rows", db_index=False)
    minute = models.DateTimeField()
    metric = models.CharField(max_length=32)
    base = models.CharField(max_length=64, blank=True)
    adapter = models.CharField(max_length=64, blank=True)
    adapter_name = models.CharField(max_length=MAX_NAME_LENGTH, blank=True)
    backend = models.CharField(max_length=32, blank=True)
    business = models.CharField(max_length=MAX_NAME_LENGTH, blank=True, default="")
    count = models.PositiveBigIntegerField()
    sum = models.FloatField()
    min = models.FloatField()
    max = models.FloatField()
    zeros = models.PositiveBigIntegerField()
    buckets = models.JSONField(default=dict)

    class Meta:
        indexes = [
            models.Index(fields=["metric", "minute"]),
            models.Index(fields=["device", "metric", "minute"]),
            models.Index(fields=["minute"]),
        ]

    def __str__(self) -> str:
        return f"{self.metric} of {self.device_id} at {self.minute:%F %R}"
