"""Housekeeping, ticked by beat."""

from celery import shared_task

from fleet.devices import actions, queries
from fleet.idempotency.actions import forget_old


@shared_task(time_limit=600)
def apply_limits(group_id: int) -> None:
    """Tell a group's devices its limits."""
    actions.apply_limits(group_id)


@shared_task(time_limit=600)
def apply_all_limits() -> None:
    """What a lost message or a dead worker left behind is found here."""
    for group_id in queries.groups_to_limit():
        actions.apply_limits(group_id)


@shared_task(time_limit=60)
def forget_expired() -> None:
    """Delete what can't be used any more: nonces, tokens, idempotency keys."""
    actions.forget_expired()
    forget_old()
