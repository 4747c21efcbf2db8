"""The registry's endpoints: each parses, calls an action or a query, and answers. What is allowed stands there."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from registry import actions, queries, uploads
from registry.actions import Announcement
from registry.errors import UnsupportedUploadError
from registry.filters import ArtifactFilter, PublicationFilter, ReleaseFilter
from registry.serializers import (
    AliasSerializer,
    AliasTargetSerializer,
    AnnouncementSerializer,
    ArtifactSerializer,
    DescriptionSerializer,
    NotesSerializer,
    PublicationSerializer,
    ReleaseSerializer,
    StrictSerializer,
    YankSerializer,
)

UPLOAD_TYPE = "application/offset+octet-stream"

READ, PUBLISH, ADMINISTER = "registry:read", "registry:publish", "registry:admin"

_UPLOAD_OFFSET = OpenApiParameter(
    "Upload-Offset", OpenApiTypes.INT, OpenApiParameter.HEADER, required=True, description="Bytes that are there."
)


@extend_schema_view(get=extend_schema(operation_id="publications_list", summary="List publications"))
class PublicationListView(generics.ListAPIView):
    """Publications, newest first; POST announces one."""

    required_scopes = {"GET": READ, "POST": PUBLISH}
    serializer_class = PublicationSerializer
    filterset_class = PublicationFilter
    queryset = queries.publications()

    @extend_schema(
        operation_id="publications_start",
        summary="Announce a release and the archive that holds it",
        request=AnnouncementSerializer,
        responses={201: PublicationSerializer, 200: OpenApiResponse(PublicationSerializer, "Announced before.")},
    )
    def post(self, request: Request) -> Response:
        """The same announcement finds the same publication; other content under the same version is refused."""
        body = _body(AnnouncementSerializer, request)
        announcement = Announcement(base_ref=body.pop("base", ""), **body)
        publication, is_new = actions.start_publication(announcement=announcement, actor=str(request.user))
        return Response(PublicationSerializer(publication).data, status.HTTP_201_CREATED if is_new else 200)


class PublicationView(APIView):
    """One publication."""

    required_scopes = {"GET": READ}

    @extend_schema(
        operation_id="publications_get", summary="See how far a publication is", responses=PublicationSerializer
    )
    def get(self, _request: Request, publication_id: UUID) -> Response:
        """State, step, progress; in the end the release, or the problem."""
        return Response(PublicationSerializer(queries.get_publication(publication_id)).data)


class PublicationFinishView(APIView):
    """All bytes are sent."""

    required_scopes = {"POST": PUBLISH}

    @extend_schema(
        operation_id="publications_finish",
        summary="Have the uploaded archive validated, converted and released",
        request=None,
        responses={202: PublicationSerializer},
    )
    def post(self, _request: Request, publication_id: UUID) -> Response:
        """A worker does it; GET the publication to watch."""
        publication = actions.finish_publication(publication_id=publication_id)
        return Response(PublicationSerializer(publication).data, status.HTTP_202_ACCEPTED)


class UploadView(APIView):
    """The bytes of an archive, as in the core of tus 1.0: HEAD says how many are there, PATCH appends."""

    required_scopes = {"GET": PUBLISH, "PATCH": PUBLISH}

    @extend_schema(operation_id="uploads_head", summary="Ask how many bytes are there", responses={204: None})
    def get(self, _request: Request, upload_id: UUID) -> Response:
        """Headers Upload-Offset and Upload-Length; HEAD is the usual way to ask."""
        upload = queries.get_upload(upload_id)
        headers = {"Upload-Length": str(upload.size_bytes), "Cache-Control": "no-store"}
        return _offset_response(uploads.current_offset(upload), headers)

    @extend_schema(
        operation_id="uploads_append",
        summary="Append bytes",
        parameters=[_UPLOAD_OFFSET],
        request={UPLOAD_TYPE: OpenApiTypes.BINARY},
        responses={204: None},
    )
    def patch(self, request: Request, upload_id: UUID) -> Response:
        """Append the body. What arrives before a cut is kept; the last byte makes the SHA-256 be checked."""
        offset_bytes = uploads.append_bytes(
            upload_id=upload_id,
            offset_bytes=_upload_offset(request),
            length_bytes=_number(request.headers.get("Content-Length", "")),
            read=request.read,
        )
        return _offset_response(offset_bytes, {})


@extend_schema_view(get=extend_schema(operation_id="releases_list", summary="List and search releases"))
class ReleaseListView(generics.ListAPIView):
    """Releases, newest first."""

    required_scopes = {"GET": READ}
    serializer_class = ReleaseSerializer
    filterset_class = ReleaseFilter
    queryset = queries.releases()
    ordering = ("-published_at", "-pk")


class ReleaseView(APIView):
    """One release, by name@version, name@alias, name (the newest) or digest. A yanked one is shown as such."""

    required_scopes = {"GET": READ, "PATCH": PUBLISH}

    @extend_schema(operation_id="releases_get", summary="Look at a release", responses=ReleaseSerializer)
    def get(self, _request: Request, ref: str) -> Response:
        """Its files, its base, its aliases, its report."""
        return Response(ReleaseSerializer(queries.find_release(ref)).data)

    @extend_schema(
        operation_id="releases_annotate",
        summary="Replace a release's notes",
        request=NotesSerializer,
        responses=ReleaseSerializer,
    )
    def patch(self, request: Request, ref: str) -> Response:
        """Nothing else about a release can change."""
        release = actions.set_notes(ref=ref, **_body(NotesSerializer, request))
        return Response(ReleaseSerializer(release).data)


class ReleaseManifestView(APIView):
    """A release's manifest."""

    required_scopes = {"GET": READ}

    @extend_schema(operation_id="releases_manifest", summary="The exact manifest", responses={200: OpenApiTypes.OBJECT})
    def get(self, _request: Request, ref: str) -> HttpResponse:
        """The bytes whose SHA-256 is the release's digest."""
        return HttpResponse(queries.manifest_bytes(queries.find_release(ref)), content_type="application/json")


class ReleaseYankView(APIView):
    """Withdrawing a release."""

    required_scopes = {"POST": ADMINISTER}

    @extend_schema(
        operation_id="releases_yank",
        summary="Withdraw a release",
        request=YankSerializer,
        responses=ReleaseSerializer,
    )
    def post(self, request: Request, ref: str) -> Response:
        """Devices that have it keep it; nobody else gets it by name."""
        release = actions.yank_release(ref=ref, **_body(YankSerializer, request))
        return Response(ReleaseSerializer(release).data)


@extend_schema_view(get=extend_schema(operation_id="artifacts_list", summary="List and search artifacts"))
class ArtifactListView(generics.ListAPIView):
    """Artifacts by name."""

    required_scopes = {"GET": READ}
    serializer_class = ArtifactSerializer
    filterset_class = ArtifactFilter
    queryset = queries.artifacts()
    ordering = ("name",)


class ArtifactView(APIView):
    """One artifact."""

    required_scopes = {"GET": READ, "PATCH": PUBLISH}

    @extend_schema(operation_id="artifacts_get", summary="Look at an artifact", responses=ArtifactSerializer)
    def get(self, _request: Request, name: str) -> Response:
        """Its newest version and its aliases."""
        return Response(ArtifactSerializer(queries.get_artifact(name)).data)

    @extend_schema(
        operation_id="artifacts_describe",
        summary="Replace an artifact's description",
        request=DescriptionSerializer,
        responses=ArtifactSerializer,
    )
    def patch(self, request: Request, name: str) -> Response:
        """Words for people."""
        artifact = actions.set_description(name=name, **_body(DescriptionSerializer, request))
        return Response(ArtifactSerializer(artifact).data)


class AliasListView(APIView):
    """An artifact's aliases."""

    required_scopes = {"GET": READ}

    @extend_schema(operation_id="aliases_list", summary="List aliases", responses=AliasSerializer(many=True))
    def get(self, _request: Request, name: str) -> Response:
        """All of them; there are few."""
        return Response(AliasSerializer(queries.get_artifact(name).aliases.all(), many=True).data)


class AliasView(APIView):
    """One alias, such as `stable`."""

    required_scopes = {"GET": READ, "PUT": PUBLISH, "DELETE": PUBLISH}

    @extend_schema(operation_id="aliases_get", summary="See what an alias stands for", responses=AliasSerializer)
    def get(self, _request: Request, name: str, alias: str) -> Response:
        """Version and digest."""
        return Response(AliasSerializer(queries.get_alias(name, alias)).data)

    @extend_schema(
        operation_id="aliases_set",
        summary="Let an alias stand for a version",
        request=AliasTargetSerializer,
        responses={200: AliasSerializer, 201: OpenApiResponse(AliasSerializer, "The alias is new.")},
    )
    def put(self, request: Request, name: str, alias: str) -> Response:
        """What was resolved before stays; an alias is looked up once, when something is planned."""
        version = _body(AliasTargetSerializer, request)["version"]
        row, is_new = actions.set_alias(name=name, alias=alias, version=version, actor=str(request.user))
        return Response(AliasSerializer(row).data, status.HTTP_201_CREATED if is_new else 200)

    @extend_schema(operation_id="aliases_remove", summary="Forget an alias", responses={204: None})
    def delete(self, _request: Request, name: str, alias: str) -> Response:
        """The release stays."""
        actions.remove_alias(name=name, alias=alias)
        return Response(status=status.HTTP_204_NO_CONTENT)


def _body(serializer_class: type[StrictSerializer], request: Request) -> dict[str, Any]:
    serializer = serializer_class(data=request.data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def _upload_offset(request: Request) -> int:
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip()
    offset_bytes = _number(request.headers.get("Upload-Offset", ""))
    if content_type != UPLOAD_TYPE or offset_bytes is None:
        raise UnsupportedUploadError(f"Content-Type is {content_type!r:.80}, Upload-Offset is {offset_bytes}")
    return offset_bytes


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _offset_response(offset_bytes: int, headers: dict[str, str]) -> Response:
    return Response(status=status.HTTP_204_NO_CONTENT, headers={"Upload-Offset": str(offset_bytes), **headers})
