"""Housekeeping, ticked by beat."""

from celery import shared_task

from fleet.devices import actions
from fleet.idempotency.actions import forget_old


@shared_task(time_limit=60)
def forget_expired() -> None:
    """Delete what can't be used any more: nonces, tokens, idempotency keys."""
    actions.forget_expired()
    forget_old()
