"""Every path of the service, by who speaks: operators' programs, devices, monitoring, people."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

handler400 = "fleet.errors.bad_request"
handler403 = "fleet.errors.permission_denied"
handler404 = "fleet.errors.page_not_found"
handler500 = "fleet.errors.server_error"

urlpatterns = [
    path("api/v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/", include("registry.urls")),
    path("admin/", admin.site.urls),
]

if "fleet.dashboard" in settings.INSTALLED_APPS:
    urlpatterns.append(path("", include("fleet.dashboard.urls")))
