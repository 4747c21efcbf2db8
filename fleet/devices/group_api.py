"""The operators' API about groups: /groups, their limits, and who is in them. Parses, calls, answers."""

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from edge_agent.protocol import Window
from fleet.devices import actions, queries, tasks
from fleet.devices.api import READ_WRITE
from fleet.devices.models import DeviceGroup
from fleet.serializers import StrictSerializer, validated

_MAX_BYTES = 1 << 50


class WindowField(serializers.CharField):
    """A time of the day in a time zone, as `edge_agent.protocol.Window` reads it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=80, help_text="For instance 22:00-06:00 Europe/Berlin.", **kwargs)

    def to_internal_value(self, data: Any) -> str:
        """The text, if it is a window."""
        text: str = super().to_internal_value(data)
        try:
            Window.parse(text)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error
        return text


class GroupLimits(StrictSerializer):
    """What a group's devices may spend, and how fast a set must be to be kept; null is no limit."""

    memory_bytes = serializers.IntegerField(min_value=1, max_value=_MAX_BYTES, required=False, allow_null=True)
    download_bytes_per_s = serializers.IntegerField(min_value=1, max_value=_MAX_BYTES, required=False, allow_null=True)
    min_decode_tokens_per_s = serializers.FloatField(
        min_value=0.001, max_value=1_000_000, required=False, allow_null=True
    )
    download_window = WindowField(required=False, allow_null=True)


class GroupRow(serializers.ModelSerializer[DeviceGroup]):
    """A group with the number of its devices and its limits."""

    num_devices = serializers.IntegerField(read_only=True, default=0)
    limits = serializers.SerializerMethodField()

    class Meta:
        model = DeviceGroup
        fields = ["name", "description", "created_at", "num_devices", "limits"]
        read_only_fields = fields

    @extend_schema_field(GroupLimits)
    def get_limits(self, group: DeviceGroup) -> Any:
        """All by name, null where there is none."""
        return dict.fromkeys(GroupLimits().fields) | group.limits


class GroupRequest(StrictSerializer):
    """A new group."""

    name = serializers.RegexField(r"^[a-z0-9][a-z0-9_-]*$", max_length=63)
    description = serializers.CharField(max_length=500, allow_blank=True, default="")


class GroupChange(StrictSerializer):
    """What an operator may change of a group; limits that are not named stay, null lifts one."""

    description = serializers.CharField(max_length=500, allow_blank=True, required=False)
    limits = GroupLimits(required=False)


class GroupsView(APIView):
    """Groups of devices."""

    required_scopes = READ_WRITE

    @extend_schema(operation_id="list_groups", responses=GroupRow(many=True))
    def get(self, _request: Request) -> Response:
        """All groups by name."""
        return Response(GroupRow(queries.groups(), many=True).data)

    @extend_schema(operation_id="create_group", request=GroupRequest, responses={201: GroupRow})
    def post(self, request: Request) -> Response:
        """Make an empty group."""
        group = actions.create_group(**validated(GroupRequest, request.data))
        return Response(GroupRow(group).data, status=201)


class GroupView(APIView):
    """One group."""

    required_scopes = READ_WRITE

    @extend_schema(operation_id="get_group", responses=GroupRow)
    def get(self, _request: Request, name: str) -> Response:
        """The group with its limits."""
        return Response(GroupRow(queries.get_group(name)).data)

    @extend_schema(operation_id="update_group", request=GroupChange, responses=GroupRow)
    def patch(self, request: Request, name: str) -> Response:
        """Change the description or limits. Devices hear of their limits with their next poll."""
        change = validated(GroupChange, request.data)
        group = actions.update_group(group=queries.get_group(name), actor=str(request.user), **change)
        tasks.apply_limits.delay_on_commit(group.pk)
        return Response(GroupRow(queries.get_group(name)).data)


class GroupDeviceView(APIView):
    """A device's place in a group."""

    required_scopes = READ_WRITE

    @extend_schema(operation_id="add_device_to_group", request=None, responses={204: None})
    def put(self, request: Request, name: str, device_id: str) -> Response:
        """Put the device into the group. Repeating it changes nothing."""
        group, device = queries.get_group(name), queries.get_device(device_id)
        actions.add_to_group(group=group, device=device, actor=str(request.user))
        return Response(status=204)

    @extend_schema(operation_id="remove_device_from_group", request=None, responses={204: None})
    def delete(self, request: Request, name: str, device_id: str) -> Response:
        """Take the device out of the group. Its limits change at once; what it has stays until the next rollout."""
        group, device = queries.get_group(name), queries.get_device(device_id)
        actions.remove_from_group(group=group, device=device, actor=str(request.user))
        return Response(status=204)
