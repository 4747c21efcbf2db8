"""Paths that devices call, below /device/v1/; `edge_agent.protocol` lists them."""

from django.urls import path, re_path

from fleet.device_api import views

urlpatterns = [
    path("enrol", views.enrol),
    path("key", views.key),
    path("desired", views.desired),
    re_path(r"^releases/(?P<digest>[0-9a-f]{64})$", views.release),
    re_path(r"^releases/(?P<digest>[0-9a-f]{64})/index$", views.release_index),
    re_path(r"^files/(?P<sha256>[0-9a-f]{64})$", views.file),
    re_path(r"^trust/metadata/(?P<name>[0-9A-Za-z._-]{1,80})\.json$", views.trust_metadata),
    re_path(r"^trust/targets/(?P<path>[0-9A-Za-z._/-]{1,256})$", views.trust_target),
    path("report", views.report),
    path("telemetry", views.telemetry_batch),
]
