"""The Celery application. Tasks only tick what stands in the database; a lost message is found again by a beat."""

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging

from fleet import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
broker.register()

app = Celery("fleet")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def keep_djangos_logging(**_: Any) -> None:
    """With a receiver here, Celery leaves the logging alone that the settings describe."""
