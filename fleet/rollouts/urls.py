"""Paths of the operators' API about rollouts, below /api/v1/."""

from django.urls import path

from fleet.rollouts import api

urlpatterns = [
    path("rollouts", api.RolloutsView.as_view()),
    path("rollouts/<str:rollout_id>", api.RolloutView.as_view()),
    path("rollouts/<str:rollout_id>/devices", api.RolloutDevicesView.as_view()),
    path("rollouts/<str:rollout_id>/start", api.StartRolloutView.as_view()),
    path("rollouts/<str:rollout_id>/pause", api.PauseRolloutView.as_view()),
    path("rollouts/<str:rollout_id>/resume", api.ResumeRolloutView.as_view()),
    path("rollouts/<str:rollout_id>/abort", api.AbortRolloutView.as_view()),
]
