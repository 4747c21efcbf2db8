"""What operators and devices do to rollouts. States move by conditional UPDATE: who sees the count of 1 did it.

pause   devices that have not begun get their former document back; those at work go on
resume  the devices still waiting get the change again
abort   every device that is not active gets back what it had before
"""

from collections import Counter
from collections.abc import Iterable

from django.db import transaction
from django.utils import timezone

from edge_agent import protocol
from fleet.audit.chain import Proof
from fleet.devices import actions as devices
from fleet.devices.desired import ReleaseSet, records_of
from fleet.devices.models import Device
from fleet.rollouts import handout, queries
from fleet.rollouts.errors import RolloutRefusedError, RolloutStateError
from fleet.rollouts.models import Rollout, RolloutDevice
from fleet.rollouts.planning import Change, ChangeRefusedError, Conflict, Plan, check_change, plan
from fleet.rollouts.states import (
    TRANSITIONS,
    Command,
    Evidence,
    RolloutState,
    Step,
    Verdict,
    judge,
    outcome,
    states_before,
    steps_before,
)
from fleet.rollouts.targets import Request, change_of, current_plan, find_devices, find_releases
from registry.trust.vouched import Vouched, read_vouched

_ENDS = {RolloutState.COMPLETED, RolloutState.FAILED, RolloutState.ABORTED}


@transaction.atomic
def create_rollout(*, request: Request, actor: str) -> Rollout:
    """A draft with a row per device; raises `RolloutRefusedError` if it can't be carried out on each of them."""
    releases = find_releases(request)
    vouched = read_vouched()
    change = change_of(releases, request.remove, vouched)
    device_ids = list(find_devices(request).values_list("pk", flat=True))
    _check(change, _distinct_plans(device_ids, vouched))
    rollout = Rollout.objects.create(
        name=request.name,
        base=releases.base,
        remove=sorted(change.remove),
        target={"groups": [*request.groups], "tags": [*request.tags], "devices": [*request.devices]},
        created_by=actor,
    )
    rollout.adapters.set(releases.adapters)
    now = timezone.now()
    RolloutDevice.objects.bulk_create(
        [RolloutDevice(rollout=rollout, device_id=pk, updated_at=now) for pk in device_ids], batch_size=500
    )
    return rollout


def _check(change: Change, plans: Iterable[Plan]) -> None:
    try:
        check_change(change)
    except ChangeRefusedError as error:
        raise RolloutRefusedError(error.conflicts) from error
    conflicts: dict[Conflict, None] = {}
    for current in plans:
        try:
            plan(change, current)
        except ChangeRefusedError as error:
            conflicts |= dict.fromkeys(error.conflicts)
    if conflicts:
        raise RolloutRefusedError([*conflicts])


def _distinct_plans(device_ids: Iterable[str], vouched: Vouched) -> Iterable[Plan]:
    """Fleets are uniform: many devices, few different sets."""
    return Counter(current_plan(record, vouched) for record in records_of(device_ids).iterator(chunk_size=500))


def command(*, rollout: Rollout, command: Command, actor: str) -> Rollout:
    """Start, pause, resume or abort; raises `RolloutStateError` where the rollout does not obey."""
    with transaction.atomic():
        if not _move(rollout.pk, command):
            state = Rollout.objects.values_list("state", flat=True).get(pk=rollout.pk)
            raise RolloutStateError(f"A rollout that is {state} can't be told to {command}.")
        rollout.refresh_from_db()
        if command == Command.PAUSE:
            handout.take_back(rollout, [Step.PENDING], then=Step.PENDING)
        if command == Command.ABORT:
            not_active = [Step.PENDING, Step.UPDATING, Step.FAILED]
            handout.take_back(rollout, not_active, then=Step.SKIPPED, reason="aborted")
        device_ids = rollout.rows.values_list("device_id", flat=True)
        devices.record_events(device_ids, actor, f"rollout_{command}", rollout=rollout.pk)
    return rollout


def _move(rollout_id: str, command: Command) -> bool:
    """Carry out the transition, if the table has it for the state that the row is in now."""
    now = timezone.now()
    for before in states_before(command):
        after = TRANSITIONS[before, command]
        times = {"finished_at": now} if after in _ENDS else {}
        if command == Command.START:
            times["started_at"] = now
        if Rollout.objects.filter(pk=rollout_id, state=before).update(state=after, **times):
            return True
    return False


@transaction.atomic
def take_report(*, device: Device, report: protocol.DeviceReport, proof: Proof | None = None) -> str | None:
    """Keep the report, and move the device in its rollout; the rollout's id if that settled the device."""
    devices.record_report(device=device, report=report, proof=proof)
    row = queries.row_in_force(device.pk)
    verdict = judge(row.revision, _evidence(report, row)) if row else None
    if row is None or verdict is None or not _settle(row, verdict):
        return None
    if verdict.step == Step.UPDATING:
        return None
    devices.record_event(device.pk, "device", f"rollout_{verdict.step}", rollout=row.rollout_id, reason=verdict.reason)
    return row.rollout_id


def _settle(row: RolloutDevice, verdict: Verdict) -> bool:
    rows = RolloutDevice.objects.filter(pk=row.pk, revision=row.revision, state__in=steps_before(verdict.step))
    return bool(rows.update(state=verdict.step, reason=verdict.reason, updated_at=timezone.now()))


def _evidence(report: protocol.DeviceReport, row: RolloutDevice) -> Evidence:
    wanted: ReleaseSet = queries.wanted_by(row)
    has = (report.base.digest if report.base else None, frozenset((a.name, a.digest) for a in report.adapters))
    return Evidence(
        revision=report.revision,
        target_revision=report.target_revision,
        is_failed=report.state == protocol.UpdateState.FAILED,
        serves=has == wanted.digests,
        problem_code=report.problem.code if report.problem else "",
    )


def tick(rollout_id: str) -> None:
    """Bring a rollout on from whatever stands in the database: hand out what waits, end it when all is settled."""
    while handout.hand_out_batch(rollout_id):
        pass
    _skip_revoked(rollout_id)
    end = outcome(queries.step_counts(rollout_id))
    if end is not None:
        _move(rollout_id, end)


def _skip_revoked(rollout_id: str) -> None:
    """A device that was shut out will never report: its row must not keep the rollout open."""
    rows = RolloutDevice.objects.filter(
        rollout=rollout_id, device__state="revoked", state__in=[Step.PENDING, Step.UPDATING]
    )
    rows.update(state=Step.SKIPPED, reason="device_revoked", updated_at=timezone.now())
