"""The wire between a device and the fleet: enrolment, desired state, report, telemetry, and how requests are signed.

Both sides read and write these records with `engine.strict_json`, so an unknown field or a wrong type is refused by
name. A device in the field cannot be changed at will: fields are only ever added, with an empty default, under the same
PROTOCOL number, and what the fleet sends leaves out those that are empty: an older agent refuses a field only where it
is used. Servers are updated before agents. Standard library only (and the two doors of `engine`).

    POST /device/v1/enrol                      EnrolRequest   -> EnrolResponse         (one-time token)
    POST /device/v1/key                        KeyRotation    -> 204                   (signed by the old key)
    GET  /device/v1/desired                                   -> SignedDesired | 304   (ETag, Socle-Poll-After)
    GET  /device/v1/releases/{digest}                         -> manifest.json of the release
    GET  /device/v1/releases/{digest}/index                   -> its chunk index, see `engine.chunk_index`
    GET  /device/v1/files/{sha256}                            -> bytes of a file or object, single ranges
    GET  /device/v1/trust/metadata/{name}                     -> TUF metadata
    GET  /device/v1/trust/targets/{path}                      -> a TUF target
    POST /device/v1/report                     DeviceReport   -> 204
    POST /device/v1/telemetry                  TelemetryBatch -> 204                   (gzip, idempotent by batch id)

All but enrolment carry the headers that `signing_input` describes. Errors are RFC 9457 problem documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from enum import StrEnum
from typing import Literal, Self
from zoneinfo import ZoneInfo

from engine.distribution import ACCURACY, GAMMA, Distribution, distribution_of

__all__ = ["ACCURACY", "GAMMA", "Distribution", "distribution_of"]  # what samples are made of
PROTOCOL = 1
API_PREFIX = "/device/v1"

HEADER_DEVICE = "Socle-Device"
HEADER_TIMESTAMP = "Socle-Timestamp"
HEADER_NONCE = "Socle-Nonce"
HEADER_SIGNATURE = "Socle-Signature"
HEADER_POLL_AFTER = "Socle-Poll-After"
MAX_CLOCK_SKEW_S = 300

MAX_TELEMETRY_BYTES = 8 << 20
_WINDOW = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d) (\S+)")


def signing_input(*, device_id: str, method: str, target: str, timestamp_s: int, nonce: str, body: bytes) -> bytes:
    """The bytes that a device signs with its Ed25519 key; `target` is path and query as sent.

    Headers: Socle-Device (id), Socle-Timestamp (Unix seconds, at most MAX_CLOCK_SKEW_S off), Socle-Nonce (16 random
    bytes in hex, never used twice), Socle-Signature (base64). The body counts as it travels, compressed or not.
    """
    digest = hashlib.sha256(body).hexdigest()
    return "\n".join(("socle-request-1", device_id, method, target, str(timestamp_s), nonce, digest)).encode()


def rotation_signing_input(*, device_id: str, public_key: str) -> bytes:
    """The bytes that a device's new key signs to prove that it is the device's."""
    return f"socle-key-1\n{device_id}\n{public_key}".encode()


def desired_signing_input(statement: str) -> bytes:
    """The bytes that the fleet signs of a `SignedDesired`."""
    return b"socle-desired-1\n" + statement.encode()


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a device says of itself at enrolment and in each report."""

    machine: str
    cpu_count: int
    memory_bytes: int
    system: str = ""
    cpu_model: str = ""


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """A device introduces itself. `public_key` is the raw Ed25519 key in base64; the private one never leaves it.

    `root_sha256` is the root that its token pins, which it wants to be sent; "" if it was given one by other means.
    """

    token: str
    name: str
    public_key: str
    agent_version: str
    hardware: Hardware
    protocol: int = PROTOCOL
    root_sha256: str = ""


@dataclass(frozen=True, slots=True)
class EnrolResponse:
    """The device's id from now on, and the TUF root that it asked for."""

    device_id: str
    poll_interval_s: float
    root: str = ""


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """The key that a device uses from now on, raw in base64, and its signature over `rotation_signing_input`."""

    device_id: str
    public_key: str
    proof: str


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """A release that a device shall have or has. `size_bytes` is the sum of its files; 0 where not known."""

    name: str
    version: str
    digest: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to before `end` of each day, by the clocks of one time zone; over midnight if `end` is earlier."""

    start: time
    end: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str) -> Self:
        """A window as people write it, `22:00-06:00 Europe/Berlin`; raises `ValueError`."""
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r:.80} is no window such as '22:00-06:00 Europe/Berlin'")
        start, end = time.fromisoformat(found[1]), time.fromisoformat(found[2])
        if start == end:
            raise ValueError(f"the window {text!r} is empty: leave it out to download at any time")
        try:
            return cls(start, end, ZoneInfo(found[3]))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"this system knows no time zone {found[3]!r}: take UTC or install tzdata") from error

    def holds(self, now: datetime) -> bool:
        """Whether it is open at this moment."""
        local = now.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device may spend, and how fast a set must be to be kept; None means no limit of the server's.

    `download_windows` are as `Window` reads them; downloads run only while all of them are open.
    """

    memory_bytes: int | None = None
    download_bytes_per_s: int | None = None
    min_decode_tokens_per_s: float | None = None
    download_windows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything a device shall have. A newer `revision` supersedes an older one; nothing queues.

    `base` None means: nothing yet. Adapters' names are unique; clients of the local API use them as `model`.
    """

    device_id: str
    revision: int
    base: ReleaseRef | None = None
    adapters: tuple[ReleaseRef, ...] = ()
    limits: Limits = field(default_factory=Limits)
    poll_interval_s: float = 60.0
    protocol: int = PROTOCOL

    @property
    def releases(self) -> tuple[ReleaseRef, ...]:
        """The base, if there is one, and the adapters."""
        return (*((self.base,) if self.base else ()), *self.adapters)


@dataclass(frozen=True, slots=True)
class DesiredStatement:
    """A desired state with the time, in Unix seconds, in which a device may learn it."""

    desired: DesiredState
    issued_at_s: int
    expires_at_s: int


@dataclass(frozen=True, slots=True)
class SignedDesired:
    """A `DesiredStatement` as JSON, signed with a key that the TUF policy lists under `keyid`; base64."""

    statement: str
    keyid: str
    signature: str


class UpdateState(StrEnum):
    """Where a device is on its way to the desired state. `edge_agent.states` holds the transitions."""

    IDLE = "idle"
    FETCHING = "fetching"
    ADMITTING = "admitting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    SWITCHING = "switching"
    PROBING = "probing"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a revision could not be reached: a stable code, and words for the operator that say what to try."""

    code: str
    detail: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of the current download."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device *has*. The server believes this over anything that it planned.

    `revision` is the one that the device serves (0: none yet), `target_revision` the one that it works on or failed at.
    `sent_at_s` is the device's clock, Unix seconds. `quarantined` are digests of adapters of the set that are not run,
    because they took the engine down. `memory_bytes` is what is resident of the engine's memory, by kind.
    """

    device_id: str
    state: UpdateState
    revision: int
    target_revision: int
    agent_version: str
    hardware: Hardware
    sent_at_s: float
    base: ReleaseRef | None = None
    adapters: tuple[ReleaseRef, ...] = ()
    problem: Problem | None = None
    progress: Progress | None = None
    engine: Mapping[str, str] = field(default_factory=dict)
    free_disk_bytes: int = 0
    free_memory_bytes: int = 0
    engine_restarts: int = 0
    quarantined: tuple[str, ...] = ()
    memory_bytes: Mapping[str, int] = field(default_factory=dict)


class Metric(StrEnum):
    """What is measured. Names carry their unit; counters are added up, the others are distributions."""

    DECODE_TOKENS_PER_S = "decode_tokens_per_s"
    PREFILL_TOKENS_PER_S = "prefill_tokens_per_s"
    TTFT_S = "ttft_s"
    ADAPTER_SWITCH_S = "adapter_switch_s"
    QUEUE_S = "queue_s"
    INTER_TOKEN_S = "inter_token_s"  # noqa: S105 - no password
    ENGINE_PSS_BYTES = "engine_pss_bytes"
    ENGINE_WEIGHTS_BYTES = "engine_weights_bytes"
    ENGINE_SCRATCH_BYTES = "engine_scratch_bytes"
    ENGINE_ADAPTERS_BYTES = "engine_adapters_bytes"
    ENGINE_KV_BYTES = "engine_kv_bytes"
    ENGINE_PREFIX_CACHE_BYTES = "engine_prefix_cache_bytes"
    ENGINE_CPU_SHARE = "engine_cpu_share"
    TEMPERATURE_C = "temperature_c"
    REQUESTS = "requests"
    REQUESTS_FAILED = "requests_failed"
    REQUESTS_CANCELLED = "requests_cancelled"
    REQUESTS_REFUSED = "requests_refused"
    PRE_EMPTIONS = "pre_emptions"
    EVICTIONS = "evictions"
    CACHED_TOKENS = "cached_tokens"
    PREFILL_TOKENS = "prefill_tokens"
    DECODE_TOKENS = "decode_tokens"
    PREFILL_S = "prefill_s"
    DECODE_S = "decode_s"
    ADAPTER_SWITCHES = "adapter_switches"
    ENGINE_RESTARTS = "engine_restarts"
    ADAPTERS_QUARANTINED = "adapters_quarantined"
    UPDATES = "updates"
    UPDATE_PAUSE_S = "update_pause_s"
    SAMPLES_DROPPED = "samples_dropped"


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric over one minute of one device. `base` and `adapter` are release digests, "" for none.

    `business` is the name of whoever asked, "" where nobody did.
    """

    minute_s: int
    metric: Metric
    value: Distribution
    base: str = ""
    adapter: str = ""
    adapter_name: str = ""
    backend: str = ""
    business: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """Samples under an id that the device made; the server takes each id once."""

    batch_id: str
    device_id: str
    samples: tuple[Sample, ...]
    protocol: Literal[1] = 1
