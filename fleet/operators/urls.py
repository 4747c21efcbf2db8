"""Paths of the API about operator tokens, below /api/v1/."""

from django.urls import path

from fleet.operators import api

urlpatterns = [
    path("operator-tokens", api.OperatorTokensView.as_view()),
    path("operator-tokens/<int:token_id>/revoke", api.RevokeOperatorTokenView.as_view()),
]
