"""Every path of the service, by who speaks: operators' programs, devices, monitoring, people."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from fleet import health, metrics

_api_docs = SpectacularSwaggerSplitView.as_view(url_name="schema", template_name="fleet/api_docs.html")

handler400 = "fleet.errors.bad_request"
handler403 = "fleet.errors.permission_denied"
handler404 = "fleet.errors.page_not_found"
handler500 = "fleet.errors.server_error"

urlpatterns = [
    path("api/v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/docs", _api_docs, name="docs"),
    path("api/v1/", include("registry.urls")),
    path("api/v1/", include("fleet.operators.urls")),
    path("api/v1/", include("fleet.devices.urls")),
    path("api/v1/", include("fleet.rollouts.urls")),
    path("api/v1/", include("fleet.telemetry.urls")),
    path("device/v1/", include("fleet.device_api.urls")),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", metrics.metrics),
    path("admin/", admin.site.urls),
]

if "fleet.dashboard" in settings.INSTALLED_APPS:
    urlpatterns.append(path("", include("fleet.dashboard.urls")))
