"""Taking batches in, and deleting what is older than retention."""

import re
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from edge_agent.protocol import Sample, TelemetryBatch
from fleet.devices.models import Device
from fleet.telemetry.errors import BadSampleError
from fleet.telemetry.models import TelemetryBatchRecord, TelemetryRow
from fleet.telemetry.rules import MAX_SAMPLES, MINUTE_S, check_sample, is_kept

_BATCH_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DELETE_AT_ONCE = 5000


def ingest(*, device: Device, batch: TelemetryBatch) -> int:
    """Store the batch unless its id was taken before; how many samples were left out (see `rules`).

    The record and the rows are one transaction: a batch is there as a whole or not at all, so repeating is safe.
    """
    _check(batch)
    now, retention = timezone.now(), retention_period()
    kept = [sample for sample in batch.samples if is_kept(sample, now=now, retention=retention)]
    num_refused = len(batch.samples) - len(kept)
    try:
        with transaction.atomic():
            TelemetryBatchRecord.objects.create(
                device=device, batch_id=batch.batch_id, num_rows=len(kept), num_refused=num_refused, received_at=now
            )
            TelemetryRow.objects.bulk_create([_row(device, sample) for sample in kept], batch_size=500)
    except IntegrityError:
        return TelemetryBatchRecord.objects.get(device=device, batch_id=batch.batch_id).num_refused
    return num_refused


def retention_period() -> timedelta:
    """How long rows are kept."""
    return timedelta(days=settings.SOCLE_TELEMETRY_RETENTION_DAYS)


def delete_old() -> int:
    """Delete rows beyond retention, in portions that do not hold the database for long; how many there were."""
    oldest = timezone.now() - retention_period()
    num_deleted = 0
    while ids := list(TelemetryRow.objects.filter(minute__lt=oldest).values_list("pk", flat=True)[:_DELETE_AT_ONCE]):
        num_deleted += TelemetryRow.objects.filter(pk__in=ids).delete()[0]
    # Batch ids are kept longer than any device keeps a batch, or a late repeat would be taken twice.
    TelemetryBatchRecord.objects.filter(received_at__lt=oldest - retention_period()).delete()
    return num_deleted


def _check(batch: TelemetryBatch) -> None:
    if not _BATCH_ID.fullmatch(batch.batch_id):
        raise BadSampleError("batch_id: 1 to 64 letters, digits, dots, dashes and underscores are allowed.")
    if len(batch.samples) > MAX_SAMPLES:
        raise BadSampleError(f"samples: at most {MAX_SAMPLES} are allowed in a batch.")
    for index, sample in enumerate(batch.samples):
        if complaint := check_sample(sample):
            raise BadSampleError(f"samples[{index}]: {complaint}.")


def _row(device: Device, sample: Sample) -> TelemetryRow:
    value = sample.value
    return TelemetryRow(
        device=device,
        minute=datetime.fromtimestamp(sample.minute_s - sample.minute_s % MINUTE_S, UTC),
        metric=sample.metric,
        base=sample.base,
        adapter=sample.adapter,
        adapter_name=sample.adapter_name,
        backend=sample.backend,
        business=sample.business,
        count=value.count,
        sum=value.sum,
        min=value.min,
        max=value.max,
        zeros=value.zeros,
        buckets=dict(value.buckets),
    )
