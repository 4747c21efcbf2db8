"""The dashboard as a Django app; it has no tables."""

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    """Pages, templates and static files."""

    name = "fleet.dashboard"
    label = "dashboard"
