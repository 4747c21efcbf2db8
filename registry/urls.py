"""Where the registry's API lies, below /api/v1/."""

from __future__ import annotations

from django.urls import path

from registry import api

urlpatterns = [
    path("publications", api.PublicationListView.as_view(), name="publications"),
    path("publications/<uuid:publication_id>", api.PublicationView.as_view(), name="publication"),
    path("publications/<uuid:publication_id>/finish", api.PublicationFinishView.as_view(), name="publication-finish"),
    path("uploads/<uuid:upload_id>", api.UploadView.as_view(), name="upload"),
    path("releases", api.ReleaseListView.as_view(), name="releases"),
    path("releases/<str:ref>", api.ReleaseView.as_view(), name="release"),
    path("releases/<str:ref>/manifest", api.ReleaseManifestView.as_view(), name="release-manifest"),
    path("releases/<str:ref>/yank", api.ReleaseYankView.as_view(), name="release-yank"),
    path("artifacts", api.ArtifactListView.as_view(), name="artifacts"),
    path("artifacts/<str:name>", api.ArtifactView.as_view(), name="artifact"),
    path("artifacts/<str:name>/aliases", api.AliasListView.as_view(), name="aliases"),
    path("artifacts/<str:name>/aliases/<str:alias>", api.AliasView.as_view(), name="alias"),
]
