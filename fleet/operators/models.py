"""Operator tokens as they are stored: never the token itself, only its hash and the prefix that people recognise."""

from django.db import models


class OperatorToken(models.Model):
    """A bearer token of a person or a program that operates the fleet."""

    name = models.CharField(max_length=100, unique=True)
    prefix = models.CharField(max_length=16)
    token_hash = models.CharField(max_length=64, unique=True)
    scopes = models.JSONField(default=list)
    created_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
