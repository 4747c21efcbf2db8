"""Ticks of rollouts. A message only hurries what beat would find by itself in the database."""

from celery import shared_task

from fleet.rollouts import actions, queries


@shared_task(time_limit=600)
def tick_rollout(rollout_id: str) -> None:
    """Bring one rollout on."""
    actions.tick(rollout_id)


@shared_task(time_limit=600)
def tick_rollouts() -> None:
    """Bring all running rollouts on: what a lost message or a dead worker left behind is found here."""
    for rollout_id in queries.running_ids():
        actions.tick(rollout_id)
