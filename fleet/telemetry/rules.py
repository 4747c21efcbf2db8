"""What makes a sample believable, and which minutes are kept. Pure.

A minute that lies further ahead than the device's clock may be off, or so far back that retention would delete it at
once, is left out of its batch and counted: a device whose clock started in 1970 must not lose the rest of the batch,
nor its place in the spool.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from edge_agent.protocol import Distribution, Metric, Sample

MINUTE_S = 60
MAX_AHEAD = timedelta(minutes=10)
MAX_SAMPLES = 20_000
# Beyond this, GAMMA**index is no float.
_MAX_BUCKET_INDEX = 35_000
_MAX_BUCKETS = 4096
# Far above anything measured, and low enough that sums over a fleet stay finite.
_MAX_COUNT = 1 << 40
_MAX_VALUE = 1e24
_BUCKET = re.compile(r"-?\d{1,5}")
_DIGEST = re.compile(r"[0-9a-f]{64}|")
_COUNTERS = frozenset(
    {
        Metric.REQUESTS,
        Metric.REQUESTS_FAILED,
        Metric.REQUESTS_CANCELLED,
        Metric.REQUESTS_REFUSED,
        Metric.PRE_EMPTIONS,
        Metric.EVICTIONS,
        Metric.CACHED_TOKENS,
        Metric.PREFILL_TOKENS,
        Metric.DECODE_TOKENS,
        Metric.PREFILL_S,
        Metric.DECODE_S,
        Metric.ADAPTER_SWITCHES,
        Metric.ENGINE_RESTARTS,
        Metric.ADAPTERS_QUARANTINED,
        Metric.UPDATES,
        Metric.SAMPLES_DROPPED,
    }
)
_UNITS = {"tokens_per_s": "tokens/s", "bytes": "B", "s": "s", "tokens": "tokens", "temperature_c": "°C"}


def is_counter(metric: Metric) -> bool:
    """Whether observations are increments that are added up; the other metrics are distributions."""
    return metric in _COUNTERS


def unit_of(metric: Metric) -> str:
    """The unit that the metric's name carries, "" for plain numbers."""
    return next((unit for suffix, unit in _UNITS.items() if metric == suffix or metric.endswith(f"_{suffix}")), "")


def is_kept(sample: Sample, *, now: datetime, retention: timedelta) -> bool:
    """Whether the sample's minute lies in the time that is kept."""
    return (now - retention).timestamp() <= sample.minute_s <= (now + MAX_AHEAD).timestamp()


def check_sample(sample: Sample) -> str | None:
    """What is wrong with the sample, if anything."""
    return next(_complaints(sample), None)


def _complaints(sample: Sample) -> Iterator[str]:
    if not (_DIGEST.fullmatch(sample.base) and _DIGEST.fullmatch(sample.adapter)):
        yield "base and adapter must be release digests or empty"
    names = (sample.adapter_name, sample.backend, sample.business)
    if any(len(name) > most or "\0" in name for name, most in zip(names, (63, 32, 63), strict=True)):
        yield "adapter_name, backend or business is too long or holds NUL"
    yield from _distribution_complaints(sample.value)


def _distribution_complaints(value: Distribution) -> Iterator[str]:
    if not 1 <= value.count <= _MAX_COUNT or value.zeros < 0:
        yield f"count must be 1 to {_MAX_COUNT}, zeros at least 0"
    if len(value.buckets) > _MAX_BUCKETS:
        yield f"at most {_MAX_BUCKETS} buckets are allowed"
    for index, count in value.buckets.items():
        if not _BUCKET.fullmatch(index) or abs(int(index)) > _MAX_BUCKET_INDEX or count < 1:
            yield f"bucket {index!r:.20} has a bad index or count"
    if value.zeros + sum(value.buckets.values()) != value.count:
        yield "count is not the sum of zeros and buckets"
    if value.min > value.max or max(map(abs, (value.sum, value.min, value.max))) > _MAX_VALUE:
        yield f"min is above max, or a number is beyond {_MAX_VALUE:g}"
