"""The operators' API about rollouts: /rollouts. Parses, calls, answers."""

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field, extend_schema_view
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fleet.operators.scopes import Scope
from fleet.rollouts import actions, queries, targets, tasks
from fleet.rollouts.models import Rollout, RolloutDevice
from fleet.rollouts.states import Command, RolloutState, Step
from fleet.serializers import PageQuery, StrictSerializer, page_filters, validated

_READ_WRITE = {"GET": Scope.FLEET_READ, "POST": Scope.FLEET_WRITE}
_MAX_ROWS_IN_DETAIL = 100


class RolloutRequest(StrictSerializer):
    """A change and whom it is for: devices in any of the groups, with any of the tags, or named."""

    name = serializers.CharField(max_length=100, allow_blank=True, required=False)
    base = serializers.CharField(max_length=160, required=False, allow_null=True)
    adapters = serializers.ListField(child=serializers.CharField(max_length=160), max_length=256, required=False)
    remove = serializers.ListField(child=serializers.CharField(max_length=63), max_length=256, required=False)
    groups = serializers.ListField(child=serializers.CharField(max_length=63), max_length=100, required=False)
    tags = serializers.ListField(child=serializers.CharField(max_length=63), max_length=100, required=False)
    devices = serializers.ListField(child=serializers.CharField(max_length=32), max_length=10_000, required=False)
    start = serializers.BooleanField(default=True)


class RolloutQuery(PageQuery):
    """Filters of the rollout list."""

    state = serializers.ChoiceField([str(state) for state in RolloutState], required=False)


class RolloutDeviceQuery(PageQuery):
    """Filters of a rollout's devices."""

    state = serializers.ChoiceField([str(step) for step in Step], required=False)


class RolloutRelease(serializers.Serializer[Any]):
    """A release that the rollout brings."""

    name = serializers.CharField()
    version = serializers.CharField()
    digest = serializers.CharField()


class RolloutDeviceRow(serializers.ModelSerializer[RolloutDevice]):
    """One device in a rollout."""

    device_id = serializers.CharField()
    device_name = serializers.CharField(source="device.name")

    class Meta:
        model = RolloutDevice
        fields = ["device_id", "device_name", "state", "reason", "revision", "updated_at"]
        read_only_fields = fields


class RolloutRow(serializers.ModelSerializer[Rollout]):
    """A rollout with the number of devices at each step."""

    base = RolloutRelease(allow_null=True)
    adapters = RolloutRelease(many=True)
    remove = serializers.ListField(child=serializers.CharField())
    target = serializers.DictField(child=serializers.ListField(child=serializers.CharField()))
    counts = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields = [
            "id",
            "name",
            "state",
            "base",
            "adapters",
            "remove",
            "target",
            "counts",
            "created_by",
            "created_at",
            "started_at",
            "finished_at",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_counts(self, rollout: Rollout) -> Any:
        """Devices per step."""
        return queries.progress(rollout).counts


class RolloutDetail(RolloutRow):
    """A rollout with its devices, those that need a look first; /rollouts/{id}/devices has them all."""

    devices = serializers.SerializerMethodField()

    class Meta(RolloutRow.Meta):
        fields = [*RolloutRow.Meta.fields, "devices"]
        read_only_fields = fields

    @extend_schema_field(RolloutDeviceRow(many=True))
    def get_devices(self, rollout: Rollout) -> Any:
        """The first hundred."""
        return RolloutDeviceRow(queries.rollout_rows(rollout.pk)[:_MAX_ROWS_IN_DETAIL], many=True).data


def _detail(rollout_id: str) -> Any:
    return RolloutDetail(queries.get_rollout(rollout_id)).data


@extend_schema_view(get=extend_schema(operation_id="list_rollouts", parameters=[RolloutQuery]))
class RolloutsView(generics.ListAPIView[Rollout]):
    """All rollouts, newest first."""

    required_scopes = _READ_WRITE
    serializer_class = RolloutRow

    def get_queryset(self) -> QuerySet[Rollout]:
        """The rollouts that the query asks for."""
        return queries.rollouts(**page_filters(RolloutQuery, self.request))

    @extend_schema(operation_id="create_rollout", request=RolloutRequest, responses={201: RolloutDetail})
    def post(self, request: Request) -> Response:
        """Roll a change out. It starts at once unless `start` is false."""
        wanted = validated(RolloutRequest, request.data)
        is_to_start = wanted.pop("start")
        actor = str(request.user)
        rollout = actions.create_rollout(request=targets.Request(**wanted), actor=actor)
        if is_to_start:
            actions.command(rollout=rollout, command=Command.START, actor=actor)
            tasks.tick_rollout.delay_on_commit(rollout.pk)
        return Response(_detail(rollout.pk), status=201)


class RolloutView(APIView):
    """One rollout."""

    required_scopes = _READ_WRITE

    @extend_schema(operation_id="get_rollout", responses=RolloutDetail)
    def get(self, _request: Request, rollout_id: str) -> Response:
        """How far it has come."""
        return Response(_detail(rollout_id))


@extend_schema_view(get=extend_schema(operation_id="list_rollout_devices", parameters=[RolloutDeviceQuery]))
class RolloutDevicesView(generics.ListAPIView[RolloutDevice]):
    """The devices of a rollout."""

    required_scopes = _READ_WRITE
    serializer_class = RolloutDeviceRow
    ordering = ("pk",)
    queryset = RolloutDevice.objects.none()

    def get_queryset(self) -> QuerySet[RolloutDevice]:
        """The devices that the query asks for."""
        filters = page_filters(RolloutDeviceQuery, self.request)
        return queries.rollout_rows(queries.get_rollout(self.kwargs["rollout_id"]).pk, **filters)


class RolloutCommandView(APIView):
    """Commands to a rollout."""

    required_scopes = _READ_WRITE
    command: Command

    def post(self, request: Request, rollout_id: str) -> Response:
        """Carry the command out; 409 if the rollout does not obey it in its state."""
        rollout = queries.get_rollout(rollout_id)
        actions.command(rollout=rollout, command=self.command, actor=str(request.user))
        tasks.tick_rollout.delay_on_commit(rollout.pk)
        return Response(_detail(rollout_id))


@extend_schema_view(post=extend_schema(operation_id="start_rollout", request=None, responses=RolloutDetail))
class StartRolloutView(RolloutCommandView):
    """Start a draft."""

    command = Command.START


@extend_schema_view(post=extend_schema(operation_id="pause_rollout", request=None, responses=RolloutDetail))
class PauseRolloutView(RolloutCommandView):
    """Stop handing out: devices that have not begun keep what they have, those at work go on."""

    command = Command.PAUSE


@extend_schema_view(post=extend_schema(operation_id="resume_rollout", request=None, responses=RolloutDetail))
class ResumeRolloutView(RolloutCommandView):
    """Go on with the devices that still wait."""

    command = Command.RESUME


@extend_schema_view(post=extend_schema(operation_id="abort_rollout", request=None, responses=RolloutDetail))
class AbortRolloutView(RolloutCommandView):
    """End it: every device that is not active gets back what it had before."""

    command = Command.ABORT
