"""Retention, ticked by beat."""

from celery import shared_task

from fleet.telemetry import actions


@shared_task(time_limit=600)
def delete_old() -> None:
    """Delete what is older than retention."""
    actions.delete_old()
