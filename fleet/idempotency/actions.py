"""Claiming a key, keeping the answer, and forgetting both."""

from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from fleet.idempotency.models import IdempotencyRecord
from registry.errors import ApiError

KEPT_FOR = timedelta(days=1)
# A claim whose process died must not block the key for a day.
CLAIM_LASTS = timedelta(minutes=2)


class KeyReusedError(ApiError):
    """The key was used with another request."""

    code = "idempotency_key_reused"
    status = 409
    title = "Idempotency key reused"
    default_hint = "Send the same body as before, or choose a new key."


class KeyInUseError(ApiError):
    """The first request with this key has not been answered yet."""

    code = "idempotency_key_in_use"
    status = 409
    title = "Request in progress"
    default_hint = "Wait for the first request to be answered, then repeat it."


def claim(*, caller: str, key: str, fingerprint: str) -> tuple[IdempotencyRecord, bool]:
    """The record of this key, and whether this request is the first and shall be carried out."""
    now = timezone.now()
    _forget_dead_claim(caller, key)
    try:
        with transaction.atomic():
            record = IdempotencyRecord.objects.create(caller=caller, key=key, fingerprint=fingerprint, created_at=now)
    except IntegrityError:
        record = IdempotencyRecord.objects.get(caller=caller, key=key)
    else:
        return record, True
    if record.fingerprint != fingerprint:
        raise KeyReusedError(f"The key {key!r} was used with another request.")
    if record.status is None:
        raise KeyInUseError(f"The request with the key {key!r} is still at work.")
    return record, False


def keep_answer(record: IdempotencyRecord, *, status: int, content_type: str, body: bytes) -> None:
    """Remember what the first request was answered."""
    IdempotencyRecord.objects.filter(pk=record.pk).update(status=status, content_type=content_type, body=body)


def release(record: IdempotencyRecord) -> None:
    """Forget the claim: the request was not carried out and may be tried again."""
    IdempotencyRecord.objects.filter(pk=record.pk, status=None).delete()


def forget_old() -> int:
    """Delete what is older than a day; the number of records."""
    return IdempotencyRecord.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()[0]


def _forget_dead_claim(caller: str, key: str) -> None:
    dead = IdempotencyRecord.objects.filter(
        caller=caller, key=key, status=None, created_at__lt=timezone.now() - CLAIM_LASTS
    )
    dead.delete()
