"""A small fleet in every state that the dashboard shows, brought about by the actions that the API calls.

`Fleet.build()` leaves: a base with three adapters (one version yanked, one alias), eight devices in two groups, a
completed and a running rollout, publications converting and failed, and an hour of telemetry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import timedelta

from django.utils import timezone

from edge_agent import protocol
from edge_agent.protocol import Metric, ReleaseRef, Sample, TelemetryBatch, UpdateState, distribution_of
from fleet.devices import actions as devices
from fleet.devices.models import Device
from fleet.rollouts import actions as rollouts
from fleet.rollouts.models import Rollout
from fleet.rollouts.states import Command
from fleet.rollouts.targets import Request
from fleet.telemetry.actions import ingest
from registry.models import Alias, Artifact, Publication, Release, ReleaseFile
from registry.versions import parse_version

ACTOR = "ada"
HARDWARE = protocol.Hardware("aarch64", 8, 12 << 30, "Debian 12", "Cortex-X4")
PROBLEM = protocol.Problem(
    "disk_full",
    "The update needs 41 MiB more disk. Free some space, then it tries again.",
    {"missing_bytes": "42991616"},
)


def publish(name: str, version: str, *, base: Release | None = None, size_bytes: int = 2 << 20) -> Release:
    """A release's rows, without the files themselves: the dashboard never opens those."""
    kind = "adapter" if base else "base"
    artifact, _ = Artifact.objects.get_or_create(name=name, defaults={"kind": kind})
    manifest = json.dumps({"name": name, "version": version}).encode()
    parsed = parse_version(version)
    release = Release.objects.create(
        artifact=artifact,
        version=version,
        version_key=parsed.sort_key,
        is_prerelease=bool(parsed.prerelease),
        digest=hashlib.sha256(manifest).hexdigest(),
        manifest=manifest,
        size_bytes=size_bytes,
        base=base,
        notes=f"Notes of {name} {version}.",
        report={"agreement": {"top_1": 0.987, "num_tokens": 512}},
        published_by=ACTOR,
    )
    ReleaseFile.objects.create(release=release, path="adapter.safetensors", sha256="ab" * 32, size_bytes=size_bytes)
    return release


def enrol(name: str, *, group: str | None = None, tags: tuple[str, ...] = ()) -> Device:
    """A device that came in by a token."""
    lifetime = timedelta(hours=1)
    [(_, secret)] = devices.create_enrolment_tokens(count=1, group=group, tags=tags, lifetime=lifetime, actor=ACTOR)
    key = base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()
    request = protocol.EnrolRequest(secret.partition(".")[0], name, key, "0.1.0", HARDWARE)
    return devices.enrol(request=request, public_key=key)


def report(device: Device, state: UpdateState, *, arrived: bool = False, **fields: object) -> None:
    """What the device says of itself, against what it shall have now; `arrived`: it serves that."""
    device.refresh_from_db()
    wanted = json.loads(bytes(device.desired.document))
    serving = wanted if arrived else (device.report or {})
    refs = [ReleaseRef(**ref) for ref in serving.get("adapters", [])]
    rollouts.take_report(
        device=device,
        report=protocol.DeviceReport(
            device_id=device.pk,
            state=state,
            revision=wanted["revision"] if arrived else device.revision,
            target_revision=wanted["revision"],
            agent_version="0.1.0",
            hardware=HARDWARE,
            sent_at_s=timezone.now().timestamp(),
            base=ReleaseRef(**serving["base"]) if serving.get("base") else None,
            adapters=tuple(refs),
            engine={"backend": "native", "threads": "4"},
            memory_bytes={"weights": 278 << 20, "kv": 12 << 20, "adapters": 9 << 20, "pss": 330 << 20},
            free_disk_bytes=9 << 30,
            free_memory_bytes=5 << 30,
            **fields,
        ),
    )


def roll_out(**change: object) -> Rollout:
    """A rollout that was started and handed out."""
    rollout = rollouts.create_rollout(request=Request(**change), actor=ACTOR)
    rollouts.command(rollout=rollout, command=Command.START, actor=ACTOR)
    rollouts.tick(rollout.pk)
    return rollout


def measure(device: Device, *, minutes: int = 60, adapters: tuple[str, ...] = ("smart-home", "car")) -> None:
    """Telemetry of the last minutes: a speed and a latency per adapter, and the engine's memory."""
    now_s = int(timezone.now().timestamp()) // 60 * 60
    samples = []
    for ago in range(minutes):
        minute_s = now_s - 60 * ago
        wave = math.sin(ago / 7)
        memory = distribution_of([310e6 + 4e6 * wave + 12e6 * (len(device.name) % 5)])
        samples.append(Sample(minute_s, Metric.ENGINE_PSS_BYTES, memory))
        for place, name in enumerate(adapters):
            speed = distribution_of([172 + 9 * wave - 14 * place, 181 + 6 * wave - 14 * place])
            samples.append(Sample(minute_s, Metric.DECODE_TOKENS_PER_S, speed, adapter_name=name))
            latency = distribution_of([0.06 + 0.01 * wave + 0.008 * place])
            samples.append(Sample(minute_s, Metric.TTFT_S, latency, adapter_name=name, business=name))
            samples += _of_business(minute_s, name, place)
    ingest(device=device, batch=TelemetryBatch(f"seed-{device.pk}", device.pk, tuple(samples)))


def _of_business(minute_s: int, name: str, place: int) -> list[Sample]:
    """What a business's requests of a minute were."""
    values = {
        Metric.REQUESTS: [1.0] * 4,
        Metric.REQUESTS_REFUSED: [1.0] * place,
        Metric.QUEUE_S: [0.002 * (place + 1)] * 4,
        Metric.INTER_TOKEN_S: [0.0056] * 40,
        Metric.PREFILL_TOKENS: [30.0] * 4,
        Metric.CACHED_TOKENS: [90.0] * 4 if place == 0 else [0.0] * 4,
    }
    return [Sample(minute_s, m, distribution_of(v), adapter_name=name, business=name) for m, v in values.items() if v]


def be_silent(device: Device, **ago: float) -> None:
    """As if nothing had been heard of the device for so long."""
    Device.objects.filter(pk=device.pk).update(last_seen_at=timezone.now() - timedelta(**ago))


@dataclass(slots=True)
class Fleet:
    """The rows that tests look for by name."""

    base: Release
    devices: dict[str, Device] = field(default_factory=dict)
    done: Rollout | None = None
    running: Rollout | None = None

    @classmethod
    def build(cls) -> Fleet:
        fleet = cls(publish("socle-demo", "1.0.0", size_bytes=19 << 20))
        fleet._publish_adapters()
        fleet._enrol()
        fleet._roll_out()
        fleet._fall_into_states()
        return fleet

    def _publish_adapters(self) -> None:
        publish("smart-home", "1.0.0", base=self.base)
        newest = publish("smart-home", "1.1.0", base=self.base)
        Alias.objects.create(artifact=newest.artifact, name="stable", release=newest, updated_by=ACTOR)
        publish("car", "1.0.0", base=self.base)
        yanked = publish("summary", "1.0.0", base=self.base)
        yanked.state, yanked.yanked_at, yanked.yank_reason = "yanked", timezone.now(), "Cuts long messages."
        yanked.save()
        common = {"kind": "adapter", "base_ref": "socle-demo", "created_by": ACTOR, "archive_size_bytes": 1 << 20}
        Publication.objects.create(
            name="summary", version="1.0.1", state="converting", step="quantising", progress=0.62, **common
        )
        Publication.objects.create(
            name="weather",
            version="0.1.0",
            state="failed",
            finished_at=timezone.now(),
            problem={
                "code": "all_zero",
                "detail": "Every matrix of the adapter is zero.",
                "hint": "Train it, then publish.",
            },
            **common,
        )

    def _enrol(self) -> None:
        devices.create_group(name="homes", description="Living rooms and kitchens")
        devices.create_group(name="cars")
        for name in ("kitchen-panel", "客厅音箱", "bedroom-speaker", "hallway-hub"):
            self.devices[name] = enrol(name, group="homes", tags=("pilot",) if name == "kitchen-panel" else ())
        for name in ("car-07", "car-12", "car-31"):
            self.devices[name] = enrol(name, group="cars")
        self.devices["old-tablet"] = enrol("old-tablet")

    def _roll_out(self) -> None:
        both = ("smart-home@1.0.0", "car@1.0.0")
        self.done = roll_out(name="First models", base="socle-demo", adapters=both, groups=("homes", "cars"))
        for name, device in self.devices.items():
            if name != "old-tablet":
                report(device, UpdateState.COMMITTED, arrived=True)
        rollouts.tick(self.done.pk)
        self.running = roll_out(name="Smart home 1.1", adapters=("smart-home@stable",), groups=("homes",))
        report(self.devices["kitchen-panel"], UpdateState.COMMITTED, arrived=True)
        progress = protocol.Progress(700_000, 2 << 20)
        report(self.devices["客厅音箱"], UpdateState.DOWNLOADING, progress=progress)
        report(self.devices["bedroom-speaker"], UpdateState.FAILED, problem=PROBLEM)

    def _fall_into_states(self) -> None:
        for name in ("kitchen-panel", "客厅音箱", "car-07"):
            measure(self.devices[name])
        be_silent(self.devices["car-12"], minutes=6)
        be_silent(self.devices["car-31"], hours=5)
        devices.revoke(device=self.devices["old-tablet"], actor=ACTOR)
