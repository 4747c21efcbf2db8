"""Paths of the operators' API about devices, below /api/v1/."""

from django.urls import path

from fleet.devices import api, group_api

urlpatterns = [
    path("enrolment-tokens", api.EnrolmentTokensView.as_view()),
    path("devices", api.DevicesView.as_view()),
    path("devices/<str:device_id>", api.DeviceView.as_view()),
    path("devices/<str:device_id>/revoke", api.RevokeDeviceView.as_view()),
    path("devices/<str:device_id>/events", api.DeviceEventsView.as_view()),
    path("groups", group_api.GroupsView.as_view()),
    path("groups/<str:name>", group_api.GroupView.as_view()),
    path("groups/<str:name>/devices/<str:device_id>", group_api.GroupDeviceView.as_view()),
]
