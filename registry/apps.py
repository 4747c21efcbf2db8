"""The Django application."""

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """The catalogue of artifacts and their releases."""

    name = "registry"
    default_auto_field = "django.db.models.BigAutoField"
