"""The operators' API about devices: /enrolment-tokens, /devices. Parses, calls, answers."""

from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field, extend_schema_view
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fleet.devices import actions, queries
from fleet.devices.models import Device, DeviceEvent, InstalledRelease
from fleet.operators.scopes import Scope
from fleet.serializers import PageQuery, StrictSerializer, page_filters, validated

READ_WRITE = {
    "GET": Scope.FLEET_READ,
    "POST": Scope.FLEET_WRITE,
    "PATCH": Scope.FLEET_WRITE,
    "PUT": Scope.FLEET_WRITE,
    "DELETE": Scope.FLEET_WRITE,
}
_SLUG = r"^[a-z0-9][a-z0-9_.-]*$"


class TagField(serializers.RegexField):
    """A tag: lower-case letters, digits, and dashes, dots and underscores between them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_SLUG, max_length=63, **kwargs)


class EnrolmentTokenRequest(StrictSerializer):
    """How many tokens, and what the devices that use them become part of."""

    count = serializers.IntegerField(min_value=1, max_value=1000, default=1)
    group = serializers.CharField(max_length=63, required=False, allow_null=True)
    tags = serializers.ListField(child=TagField(), max_length=50, default=list)
    expires_in_s = serializers.IntegerField(min_value=1, max_value=365 * 86400, default=7 * 86400)


class EnrolmentTokenRow(serializers.Serializer[Any]):
    """A new token: the one time that its secret is seen."""

    token = serializers.CharField()
    prefix = serializers.CharField()
    expires_at = serializers.DateTimeField()


class EnrolmentTokens(serializers.Serializer[Any]):
    """The answer to a request for tokens."""

    tokens = EnrolmentTokenRow(many=True)


class ReleaseRefRow(serializers.Serializer[Any]):
    """A release by name, version and digest."""

    name = serializers.CharField()
    version = serializers.CharField()
    digest = serializers.CharField()


class DeviceRow(serializers.ModelSerializer[Device]):
    """A device as lists show it."""

    status = serializers.ChoiceField([str(status) for status in queries.DeviceStatus], read_only=True)
    tags = serializers.ListField(child=serializers.CharField(), read_only=True)
    groups = serializers.SlugRelatedField(slug_field="name", many=True, read_only=True)
    wanted_revision = serializers.IntegerField(read_only=True)
    base = serializers.SerializerMethodField()
    adapters = serializers.SerializerMethodField()

    class Meta:
        model = Device
        fields = [
            "id",
            "name",
            "state",
            "status",
            "groups",
            "tags",
            "agent_version",
            "hardware",
            "created_at",
            "last_seen_at",
            "reported_at",
            "update_state",
            "revision",
            "target_revision",
            "wanted_revision",
            "problem_code",
            "base",
            "adapters",
        ]
        read_only_fields = fields

    @extend_schema_field(ReleaseRefRow(allow_null=True))
    def get_base(self, device: Device) -> Any:
        """The base that the device serves."""
        return next((_ref(row) for row in device.installed.all() if row.is_base), None)

    @extend_schema_field(ReleaseRefRow(many=True))
    def get_adapters(self, device: Device) -> Any:
        """The adapters that the device serves."""
        return [_ref(row) for row in device.installed.all() if not row.is_base]


class ReleaseWanted(serializers.Serializer[Any]):
    """A release that the device shall have."""

    name = serializers.CharField()
    version = serializers.CharField()
    digest = serializers.CharField()
    size_bytes = serializers.IntegerField()


class EventRow(serializers.ModelSerializer[DeviceEvent]):
    """A line of a device's timeline."""

    detail = serializers.DictField()

    class Meta:
        model = DeviceEvent
        fields = ["id", "at", "actor", "kind", "detail"]
        read_only_fields = fields


class DeviceLimits(serializers.Serializer[Any]):
    """What a device's groups allow it: the tightest of each limit, and all windows."""

    memory_bytes = serializers.IntegerField(allow_null=True)
    download_bytes_per_s = serializers.IntegerField(allow_null=True)
    min_decode_tokens_per_s = serializers.FloatField(allow_null=True)
    download_windows = serializers.ListField(child=serializers.CharField())


class DeviceDetailRow(DeviceRow):
    """A device with its last report, and what it shall have."""

    report = serializers.DictField(allow_null=True, read_only=True)
    wants_base = ReleaseWanted(allow_null=True, read_only=True)
    wants_adapters = ReleaseWanted(many=True, read_only=True)
    limits = DeviceLimits(read_only=True)
    events = EventRow(many=True, read_only=True)

    class Meta(DeviceRow.Meta):
        fields = [*DeviceRow.Meta.fields, "report", "wants_base", "wants_adapters", "limits", "events"]
        read_only_fields = fields


class DeviceQuery(PageQuery):
    """Filters of the device list."""

    group = serializers.CharField(max_length=63, required=False)
    tag = serializers.CharField(max_length=63, required=False)
    status = serializers.ChoiceField([str(status) for status in queries.DeviceStatus], required=False)
    search = serializers.CharField(max_length=100, required=False)
    release = serializers.RegexField(r"^[0-9a-f]{64}$", required=False)


class DeviceChange(StrictSerializer):
    """What an operator may change of a device; `tags` are all tags that it shall have."""

    name = serializers.CharField(max_length=100, required=False)
    tags = serializers.ListField(child=TagField(), max_length=50, required=False)


def _ref(row: InstalledRelease) -> dict[str, str]:
    return {"name": row.name, "version": row.version, "digest": row.digest}


def _detail_row(device_id: str) -> dict[str, Any]:
    detail = queries.device_detail(device_id)
    row = DeviceRow(detail.device).data
    return row | {
        "report": detail.device.report,
        "wants_base": ReleaseWanted(detail.wants_base).data if detail.wants_base else None,
        "wants_adapters": ReleaseWanted(detail.wants_adapters, many=True).data,
        "limits": DeviceLimits(detail.limits).data,
        "events": EventRow(detail.events, many=True).data,
    }


class EnrolmentTokensView(APIView):
    """Tokens that let devices in."""

    required_scopes = READ_WRITE

    @extend_schema(
        operation_id="create_enrolment_tokens", request=EnrolmentTokenRequest, responses={201: EnrolmentTokens}
    )
    def post(self, request: Request) -> Response:
        """Make one-time enrolment tokens. They are shown once; only their hashes are kept."""
        wanted = validated(EnrolmentTokenRequest, request.data)
        made = actions.create_enrolment_tokens(
            count=wanted["count"],
            group=wanted.get("group"),
            tags=wanted["tags"],
            lifetime=timedelta(seconds=wanted["expires_in_s"]),
            actor=str(request.user),
        )
        rows = [{"token": secret, "prefix": row.prefix, "expires_at": row.expires_at} for row, secret in made]
        return Response(EnrolmentTokens({"tokens": rows}).data, status=201)


@extend_schema_view(get=extend_schema(operation_id="list_devices", parameters=[DeviceQuery]))
class DevicesView(generics.ListAPIView[Device]):
    """All devices, newest first."""

    required_scopes = READ_WRITE
    serializer_class = DeviceRow

    def get_queryset(self) -> QuerySet[Device]:
        """The devices that the query asks for."""
        return queries.devices(**page_filters(DeviceQuery, self.request))


class DeviceView(APIView):
    """One device."""

    required_scopes = READ_WRITE

    @extend_schema(operation_id="get_device", responses=DeviceDetailRow)
    def get(self, _request: Request, device_id: str) -> Response:
        """What the device has, what it shall have, and its newest events."""
        return Response(_detail_row(device_id))

    @extend_schema(operation_id="update_device", request=DeviceChange, responses=DeviceDetailRow)
    def patch(self, request: Request, device_id: str) -> Response:
        """Rename the device, or set its tags."""
        change = validated(DeviceChange, request.data)
        actions.update_device(device=queries.get_device(device_id), actor=str(request.user), **change)
        return Response(_detail_row(device_id))


class RevokeDeviceView(APIView):
    """Shutting a device out."""

    required_scopes = READ_WRITE

    @extend_schema(operation_id="revoke_device", request=None, responses=DeviceDetailRow)
    def post(self, request: Request, device_id: str) -> Response:
        """Refuse the device from its next request on. It can only come back with a new key and a new token."""
        actions.revoke(device=queries.get_device(device_id), actor=str(request.user))
        return Response(_detail_row(device_id))


@extend_schema_view(get=extend_schema(operation_id="list_device_events", parameters=[PageQuery]))
class DeviceEventsView(generics.ListAPIView[DeviceEvent]):
    """A device's timeline, newest first."""

    required_scopes = READ_WRITE
    serializer_class = EventRow
    ordering = ("-at", "-pk")
    queryset = DeviceEvent.objects.none()

    def get_queryset(self) -> QuerySet[DeviceEvent]:
        """The events of the device in the path."""
        page_filters(PageQuery, self.request)
        return queries.events(queries.get_device(self.kwargs["device_id"]).pk)
