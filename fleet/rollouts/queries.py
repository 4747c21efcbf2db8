"""Reads about rollouts, for the API, the dashboard, the device surface and `/metrics`. Nothing here writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Case, Count, F, IntegerField, Prefetch, Q, QuerySet, Value, When

from fleet.devices.desired import ReleaseSet, current_set
from fleet.devices.models import DesiredRecord
from fleet.rollouts.errors import RolloutNotFoundError
from fleet.rollouts.models import Rollout, RolloutDevice
from fleet.rollouts.states import RolloutState, Step
from registry.models import Release

_WORST_FIRST = [Step.FAILED, Step.UPDATING, Step.PENDING, Step.SKIPPED, Step.SUPERSEDED, Step.ACTIVE]


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """How many devices of a rollout are at which step; every step is listed."""

    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Devices in the rollout."""
        return sum(self.counts.values())

    @property
    def settled_share(self) -> float:
        """The share, 0 to 1, that needs nothing more."""
        still_open = self.counts[Step.PENDING] + self.counts[Step.UPDATING]
        return 1 - still_open / self.total if self.total else 1.0


def rollouts(*, state: str = "") -> QuerySet[Rollout]:
    """Rollouts, newest first, with releases and counts per step (`num_pending`, ...); see `progress`."""
    found = Rollout.objects.filter(state=state) if state else Rollout.objects.all()
    counts = {f"num_{step}": Count("rows", filter=Q(rows__state=step)) for step in Step}
    releases = Release.objects.defer("manifest").select_related("artifact").order_by("artifact__name")
    return (
        found.annotate(**counts)
        .prefetch_related(Prefetch("base", queryset=releases), Prefetch("adapters", queryset=releases))
        .order_by("-created_at", "-pk")
    )


def active_rollouts() -> QuerySet[Rollout]:
    """Rollouts that run or are paused."""
    return rollouts().filter(state__in=[RolloutState.RUNNING, RolloutState.PAUSED])


def get_rollout(rollout_id: str) -> Rollout:
    """One rollout as `rollouts` gives it; raises `RolloutNotFoundError`."""
    rollout = rollouts().filter(pk=rollout_id).first()
    if rollout is None:
        raise RolloutNotFoundError(f"There is no rollout {rollout_id!r:.80}.")
    return rollout


def progress(rollout: Rollout) -> DeviceProgress:
    """The counts that `rollouts` fetched along."""
    return DeviceProgress({str(step): getattr(rollout, f"num_{step}") for step in Step})


def step_counts(rollout_id: str) -> dict[str, int]:
    """Number of devices per step, from the rows as they are now."""
    rows = RolloutDevice.objects.filter(rollout_id=rollout_id).order_by().values("state").annotate(num=Count("pk"))
    return {row["state"]: row["num"] for row in rows}


def rollout_rows(rollout_id: str, *, state: str = "") -> QuerySet[RolloutDevice]:
    """The devices of a rollout, those that need a look first, with the `set_revision` of their documents."""
    found = RolloutDevice.objects.filter(rollout_id=rollout_id).select_related("device")
    if state:
        found = found.filter(state=state)
    rank = Case(
        *(When(state=step, then=Value(place)) for place, step in enumerate(_WORST_FIRST)), output_field=IntegerField()
    )
    found = found.annotate(rank=rank, set_revision=F("device__desired__set_revision"))
    return found.order_by("rank", "device__name", "pk")


def rollouts_of_device(device_id: str) -> QuerySet[RolloutDevice]:
    """A device's rows, newest rollout first."""
    return RolloutDevice.objects.filter(device_id=device_id).select_related("rollout").order_by("-rollout__created_at")


def rollouts_begun(*, since: datetime, device_id: str = "") -> QuerySet[Rollout]:
    """Rollouts that began since then, newest first; of one device, or of the whole fleet."""
    begun = Rollout.objects.filter(started_at__gte=since)
    if device_id:
        begun = begun.filter(rows__device=device_id)
    return begun.order_by("-started_at", "-pk")


def row_in_force(device_id: str) -> RolloutDevice | None:
    """The row whose document the device holds now, if a report can still move it."""
    movable = RolloutDevice.objects.filter(device_id=device_id, state__in=[Step.PENDING, Step.UPDATING, Step.FAILED])
    return movable.filter(revision=F("device__desired__set_revision")).select_related("device").first()


def wanted_by(row: RolloutDevice) -> ReleaseSet:
    """What the document holds that the row's device was handed."""
    releases = Release.objects.defer("manifest").select_related("artifact")
    prefetch = (Prefetch("base", queryset=releases), Prefetch("adapters", queryset=releases))
    return current_set(DesiredRecord.objects.prefetch_related(*prefetch).get(pk=row.device_id))


def running_ids() -> list[str]:
    """Rollouts that a tick may bring on, oldest first."""
    running = Rollout.objects.filter(state=RolloutState.RUNNING)
    return list(running.order_by("created_at").values_list("pk", flat=True))


def state_counts() -> dict[str, int]:
    """Number of rollouts per state, all states listed."""
    rows = Rollout.objects.order_by().values("state").annotate(num=Count("pk"))
    counts = {row["state"]: row["num"] for row in rows}
    return {str(state): counts.get(state, 0) for state in RolloutState}
