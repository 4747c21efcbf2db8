"""Paths of the operators' API about telemetry, below /api/v1/."""

from django.urls import path

from fleet.telemetry import api

urlpatterns = [path("telemetry", api.TelemetryView.as_view())]
