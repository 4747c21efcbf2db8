"""Writing rollouts into devices' documents, and taking them back: in batches, each one transaction.

A batch locks its rollout first and the devices' records next, always in that order, so that pausing, aborting and
other rollouts see it whole or not at all.
"""

from collections.abc import Iterable, Sequence

from django.db import transaction
from django.utils import timezone

from fleet.devices import actions as devices
from fleet.devices import desired
from fleet.devices.desired import ReleaseSet, current_set, records_of
from fleet.devices.models import DesiredRecord, DeviceState
from fleet.rollouts.models import Rollout, RolloutDevice
from fleet.rollouts.planning import ChangeRefusedError, Plan, plan
from fleet.rollouts.states import RolloutState, Step
from fleet.rollouts.targets import change_of, current_plan
from registry.models import Release
from registry.trust.vouched import read_vouched

BATCH_SIZE = 200
_ACTOR = "rollout"


def hand_out_batch(rollout_id: str) -> int:
    """Give the change to the next devices that wait for it; how many there were. 0 unless the rollout runs."""
    with transaction.atomic():
        running = Rollout.objects.select_for_update().filter(pk=rollout_id, state=RolloutState.RUNNING)
        rollout = running.first()
        if rollout is None:
            return 0
        waiting = rollout.rows.filter(state=Step.PENDING, revision=None).select_related("device").order_by("device_id")
        rows = list(waiting[:BATCH_SIZE])
        records = {record.pk: record for record in records_of(row.device_id for row in rows).select_for_update()}
        _hand_out(rollout, rows, records)
        return len(rows)


def _hand_out(rollout: Rollout, rows: Sequence[RolloutDevice], records: dict[str, DesiredRecord]) -> None:
    brought = ReleaseSet(rollout.base, tuple(_adapters_of(rollout)))
    vouched = read_vouched()
    change = change_of(brought, rollout.remove, vouched)
    changes = []
    for row in rows:
        record = records[row.device_id]
        current = current_plan(record, vouched)
        row.updated_at = timezone.now()
        try:
            wanted = plan(change, current)
        except ChangeRefusedError as error:
            row.state, row.reason = Step.SKIPPED, error.conflicts[0].code
            continue
        if row.device.state == DeviceState.REVOKED:
            row.state, row.reason = Step.SKIPPED, "device_revoked"
        elif wanted == current:
            row.state, row.reason = Step.SKIPPED, "unchanged"
        else:
            row.former, row.revision = _ids(current), record.revision + 1
            changes.append((record, _releases(wanted, brought, current_set(record))))
    RolloutDevice.objects.bulk_update(rows, ["state", "reason", "revision", "former", "updated_at"])
    _supersede(rollout, [record.pk for record, _ in changes])
    desired.replace(changes)
    devices.record_events([record.pk for record, _ in changes], _ACTOR, "rollout_handed_out", rollout=rollout.pk)


def _supersede(rollout: Rollout, device_ids: list[str]) -> None:
    """The change that began last wins: whatever another rollout had open on these devices is over. Drafts wait on."""
    others = RolloutDevice.objects.filter(device_id__in=device_ids, state__in=[Step.PENDING, Step.UPDATING])
    others = others.exclude(rollout=rollout).exclude(rollout__state=RolloutState.DRAFT)
    others.update(state=Step.SUPERSEDED, reason=f"by_{rollout.pk}", updated_at=timezone.now())


def take_back(rollout: Rollout, steps: Iterable[Step], *, then: Step, reason: str = "") -> None:
    """Give the devices at these steps what they had before; open ones end at `then`. Call in a transaction.

    Only documents that still are this rollout's are touched: a newer rollout's stay.
    """
    rows = {row.device_id: row for row in rollout.rows.filter(state__in=list(steps)).exclude(revision=None)}
    records = [r for r in records_of(rows).select_for_update() if r.set_revision == rows[r.pk].revision]
    former_of = {record.pk: rows[record.pk].former for record in records}
    releases = _releases_by_id(former_of.values())
    desired.replace((record, _former_set(former_of[record.pk], releases)) for record in records)
    devices.record_events([record.pk for record in records], _ACTOR, "rollout_taken_back", rollout=rollout.pk)
    open_rows = rollout.rows.filter(state__in=set(steps) & {Step.PENDING, Step.UPDATING})
    open_rows.update(state=then, reason=reason, revision=None, former=None, updated_at=timezone.now())


def _adapters_of(rollout: Rollout) -> Iterable[Release]:
    return rollout.adapters.defer("manifest").select_related("artifact", "base").order_by("artifact__name")


def _ids(current: Plan) -> dict[str, object]:
    base = current.base.release_id if current.base else None
    return {"base": base, "adapters": [adapter.release_id for adapter in current.adapters]}


def _releases(wanted: Plan, *sources: ReleaseSet) -> ReleaseSet:
    """The rows behind a plan, from the sets that it was made of."""
    known = {release.pk: release for source in sources for release in (source.base, *source.adapters) if release}
    base = known[wanted.base.release_id] if wanted.base else None
    return ReleaseSet(base, tuple(known[adapter.release_id] for adapter in wanted.adapters))


def _releases_by_id(formers: Iterable[dict[str, object]]) -> dict[int, Release]:
    ids = {pk for former in formers for pk in (former["base"], *former["adapters"]) if pk}
    return Release.objects.defer("manifest").select_related("artifact").in_bulk(ids)


def _former_set(former: dict[str, object], releases: dict[int, Release]) -> ReleaseSet:
    base = releases[former["base"]] if former["base"] else None
    return ReleaseSet(base, tuple(releases[pk] for pk in former["adapters"]))
