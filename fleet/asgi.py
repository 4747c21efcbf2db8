"""The ASGI entry point: `uvicorn fleet.asgi:application`."""

import os

from django.core.asgi import get_asgi_application

from registry.cut_uploads import KeepCutUploads

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
application = KeepCutUploads(get_asgi_application(), path_prefix="/api/v1/uploads/")
