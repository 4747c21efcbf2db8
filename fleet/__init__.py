"""The running service: devices, rollouts, telemetry, and the surfaces for operators and devices."""

from fleet.celery import app as celery_app

__all__ = ["celery_app"]
