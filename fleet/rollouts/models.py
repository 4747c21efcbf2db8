"""Rows about rollouts: the change, whom it is for, and how far each device has come."""

import secrets

from django.db import models
from django.db.models import Q

from fleet.devices.models import Device
from fleet.rollouts.states import OPEN, RolloutState, Step
from registry.models import Release


def new_rollout_id() -> str:
    """An id that is not a count of rollouts."""
    return f"rol_{secrets.token_hex(8)}"


def _choices(states: type[RolloutState] | type[Step]) -> list[tuple[str, str]]:
    return [(state.value, state.value.capitalize()) for state in states]


ROLLOUT_STATES = _choices(RolloutState)
STEPS = _choices(Step)


class Rollout(models.Model):
    """A change, applied to each device of its target. `target` is what the operator named, for people to read."""

    id = models.CharField(primary_key=True, max_length=32, default=new_rollout_id, editable=False)
    name = models.CharField(max_length=100, blank=True)
    state = models.CharField(max_length=16, choices=ROLLOUT_STATES, default=RolloutState.DRAFT, db_index=True)
    base = models.ForeignKey(Release, on_delete=models.PROTECT, null=True, related_name="rollouts_as_base")
    adapters = models.ManyToManyField(Release, related_name="rollouts_as_adapter")
    remove = models.JSONField(default=list)
    target = models.JSONField(default=dict)
    created_by = models.CharField(max_length=160)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return self.name or self.id


class RolloutDevice(models.Model):
    """One device in one rollout.

    `revision` is that of the document it was handed, null while it has not been; `former` says what the document held
    before (ids of releases), so that it can be taken back. An open row with a revision owns the device's document.
    """

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="rows")
    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="rollout_rows")
    state = models.CharField(max_length=16, choices=STEPS, default=Step.PENDING)
    reason = models.CharField(max_length=64, blank=True)
    revision = models.PositiveBigIntegerField(null=True)
    former = models.JSONField(null=True)
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["rollout", "device"], name="rollout_device_once")]
        indexes = [
            models.Index(fields=["rollout", "state"]),
            models.Index(fields=["device"], condition=Q(state__in=sorted(OPEN)), name="rollout_open_of_device"),
        ]

    def __str__(self) -> str:
        return f"{self.device_id} in {self.rollout_id}: {self.state}"
