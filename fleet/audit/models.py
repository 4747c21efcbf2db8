"""Rows of the audit chain. They are only added; `chain` says how their hashes are made."""

from django.db import models


class AuditEntry(models.Model):
    """One thing that happened. `number` counts from 1 without gaps."""

    number = models.PositiveBigIntegerField(primary_key=True)
    at = models.DateTimeField()
    actor = models.CharField(max_length=160)
    kind = models.CharField(max_length=40)
    detail = models.JSONField()
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering = ["number"]

    def __str__(self) -> str:
        return f"{self.number} {self.kind}"


class AuditHead(models.Model):
    """The last entry's number and hash: one row, which is locked while an entry is added."""

    number = models.PositiveBigIntegerField(default=0)
    hash = models.CharField(max_length=64, default="0" * 64)

    def __str__(self) -> str:
        return f"{self.number} {self.hash}"
