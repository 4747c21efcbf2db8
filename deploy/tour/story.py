"""The demo's steps, each of which a user would take, and what was seen in them.

`Story.tell` runs them in order on a `Stack`; every step checks what it shows and raises `CheckFailedError` if the
product did not do it. `Story.report_json` is the last line of `./dev demo --check`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from deploy.demo.demo_requests import requests
from deploy.tour.api import Answer, Api, DeviceApi, Document, RefusedError
from deploy.tour.load import Load
from deploy.tour.stack import ROOT, Stack, wait_for
from deploy.tour.terminal import Terminal

MODELS = ROOT / "deploy" / "demo" / "models"
BASE = "demo-base"
ADAPTERS = ("home", "car", "summary")
UPDATED = "home"
UPDATE_ROLLOUT = f"{UPDATED} 2"
GROUP = "demo"
MIN_RIGHT_SHARE = 0.9
"""The small model errs on some requests; fewer right answers than this mean that the engine is wrong."""
REQUESTS_AROUND_UPDATE = 5


def words_of(request: Document) -> str:
    """What the user says last in a request."""
    return str(request["messages"][-1]["content"])


def _is_after(timestamp: str | None, moment: datetime) -> bool:
    return timestamp is not None and datetime.fromisoformat(timestamp) > moment


class CheckFailedError(Exception):
    """The product did not do what the step shows."""


@dataclass(slots=True)
class Report:
    """What a run of the demo saw; becomes the JSON document of `--check`."""

    devices: int
    adapters: list[str] = field(default_factory=list)
    requests_sent: int = 0
    requests_dropped: int = 0
    answers_as_expected: int = 0
    answers_compared: int = 0
    decode_tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    engine_pss_bytes: dict[str, int] = field(default_factory=dict)
    tampered_refused: list[str] = field(default_factory=list)
    telemetry_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Story:
    """The steps of the demo on one stack."""

    def __init__(self, stack: Stack, terminal: Terminal, device_names: list[str]) -> None:
        self.stack = stack
        self.terminal = terminal
        self.device_names = device_names
        self.report = Report(devices=len(device_names))
        self.versions = dict.fromkeys(ADAPTERS, "1.0.0")
        self.answers: list[Answer] = []
        self.api = Api(stack.url, token="", show=terminal.command)
        self._device_apis: dict[str, DeviceApi] = {}
        self._devices_started_at = datetime.now(UTC)

    def tell(self) -> None:
        """All steps in order; after a run that came to its end, those that find everything in place are left out."""
        self._take(1, "start", "Start the server and the worker", self.start)
        for number, (name, title, step) in enumerate(self._steps_after_start(), 2):
            self._take(number, name, title, step)

    def _steps_after_start(self) -> list[tuple[str, str, Callable[[], None]]]:
        ask = ("ask", "Ask each device; `model` names the adapter", self.ask)
        telemetry = ("telemetry", "Query the telemetry that came back", self.telemetry)
        if self._is_told():
            self.versions[UPDATED] = "2.0.0"
            self.terminal.say("  Releases and devices are those of the last run; --fresh tells the whole story again.")
            return [("return", "Start the devices; each comes back with what it had", self.come_back), ask, telemetry]
        return [
            ("publish", "Publish one base model and three adapters", self.publish),
            ("enrol", f"Enrol {len(self.device_names)} devices into the group {GROUP!r}", self.enrol),
            ("roll_out", "Roll the base and the adapters out", self.roll_out),
            ask,
            ("update", f"Roll out {UPDATED}@2.0.0 while requests keep flowing", self.update),
            ("tamper", "An intruder on the server hands out a tampered adapter", self.tamper),
            telemetry,
        ]

    def _take(self, number: int, name: str, title: str, step: Callable[[], None]) -> None:
        self.terminal.heading(f"{number}. {title}")
        with self._timed(name):
            step()

    def _is_told(self) -> bool:
        """Whether an earlier run has rolled out the update, on as many devices."""
        rollouts = self.api.call("GET", "/api/v1/rollouts", quiet=True)["results"]
        has_updated = any(r["name"] == UPDATE_ROLLOUT and r["state"] == "completed" for r in rollouts)
        return has_updated and all(self._is_enrolled(name) for name in self.device_names)

    def _is_enrolled(self, device: str) -> bool:
        return (self.stack.device_directory(device) / "identity.json").exists()

    def close(self) -> None:
        """Let go of connections."""
        for api in (self.api, *self._device_apis.values()):
            api.client.close()

    def start(self) -> None:
        """Database, operator token, server, worker."""
        is_first_time = not self.stack.has_trust
        with self.terminal.progress("server and worker are ready"):
            self.stack.prepare()
            self.stack.start_server()
        if is_first_time:
            self.terminal.say(
                "  Keys for root, targets and the publisher were made in offline-keys/: throw-away ones, kept beside "
                "the server as no fleet should."
            )
        self.api.token = self.stack.token_file.read_text().strip()
        self.terminal.command(f"SOCLE={self.stack.url}; TOKEN=$(cat {self.stack.token_file})")

    def publish(self) -> None:
        """The base and version 1 of each adapter; what was published before is found, not published twice."""
        base = {"kind": "base", "name": BASE, "version": "1.0.0", "notes": "Trained for the demo, see deploy/demo."}
        self._publish(MODELS / "base", base)
        for name in ADAPTERS:
            self._publish_adapter(name, "1.0.0")
        self._sign(f"{BASE}@1.0.0", *(f"{name}@1.0.0" for name in ADAPTERS))

    def enrol(self) -> None:
        """A one-time token per new device; each device is an agent process with a state directory of its own."""
        if not any(group["name"] == GROUP for group in self.api.call("GET", "/api/v1/groups", quiet=True)):
            self.api.call("POST", "/api/v1/groups", {"name": GROUP})
        new = [name for name in self.device_names if not self._is_enrolled(name)]
        made = []
        if new:
            request = {"group": GROUP, "count": len(new)}
            made = self.api.call("POST", "/api/v1/enrolment-tokens", request)["tokens"]
        tokens = {name: row["token"] for name, row in zip(new, made, strict=True)}
        self._start_devices(tokens, "have enrolled and reported")

    def come_back(self) -> None:
        """Devices that were enrolled before serve what they had, before the server tells them anything."""
        self._start_devices({}, "are back")
        with self.terminal.progress("each serves the base and its adapters"):
            wait_for(self._all_serve, "the devices to serve", watch=self.stack.check)

    def _start_devices(self, tokens: dict[str, str], done: str) -> None:
        self._devices_started_at = datetime.now(UTC)
        for name in self.device_names:
            self.stack.add_device(name, tokens.get(name))
        with self.terminal.progress(f"{len(self.device_names)} devices {done}"):
            wait_for(self._all_reported, "the devices to report", watch=self.stack.check)

    def roll_out(self) -> None:
        """One rollout puts the whole set on every device of the group."""
        change = {"base": f"{BASE}@1.0.0", "adapters": [f"{name}@1.0.0" for name in ADAPTERS]}
        self._roll_out("first set", change)
        self._check(self._all_serve(), "the rollout is complete, and a device does not serve what it brought")

    def ask(self) -> None:
        """Held-out requests in Chinese and English, spread over the devices; the answers are compared."""
        for adapter in ADAPTERS:
            for number, request in enumerate(requests()[adapter]):
                self._ask(self.device_names[number % len(self.device_names)], adapter, request)
        rows = []
        for name in self.device_names:
            self.report.engine_pss_bytes[name] = pss = self._engine_pss_bytes(name)
            rows.append([name, f"{pss / 2**20:.0f} MiB"])
        self.terminal.table(["device", "memory of its engine (PSS)"], rows)
        self.report.decode_tokens_per_s = statistics.median(a.decode_tokens_per_s for a in self.answers)
        self.report.ttft_s = statistics.median(a.ttft_s for a in self.answers)
        right, all_answers = self.report.answers_as_expected, self.report.answers_compared
        speed = f"{self.report.decode_tokens_per_s:.0f} tokens/s, first after {self.report.ttft_s * 1000:.0f} ms"
        self.terminal.done(f"{right} of {all_answers} answers exactly as expected; median {speed}")
        self._check(right >= MIN_RIGHT_SHARE * all_answers, f"only {right} of {all_answers} answers were as expected")

    def update(self) -> None:
        """Version 2 of one adapter, over the air, under load: nothing dropped, and the answers change."""
        self.publish_adapter(UPDATED, "2.0.0")
        request = requests()[UPDATED][0]
        load = Load({n: self.device(n) for n in self.device_names}, UPDATED, request["messages"])
        with load:
            load.wait_for_more(REQUESTS_AROUND_UPDATE)
            self._roll_out(UPDATE_ROLLOUT, {"adapters": [f"{UPDATED}@2.0.0"]})
            load.wait_for_more(REQUESTS_AROUND_UPDATE)
        for device, (before, after) in load.first_and_last().items():
            self.terminal.table(["", device], [["asked", words_of(request)], ["before", before], ["after", after]])
            expected = (request["answers"][f"{UPDATED}-1.0.0"], request["answers"][f"{UPDATED}-2.0.0"])
            self._check((before, after) == expected, f"{device} does not answer as either version should: {expected}")
        self.report.requests_sent += load.num_sent
        self.report.requests_dropped += load.num_dropped
        self.terminal.done(f"{load.num_sent} requests during the update, {load.num_dropped} dropped")
        self._check(not load.num_dropped, f"dropped: {load.errors[:3]}")
        self.versions[UPDATED] = "2.0.0"

    def tamper(self) -> None:
        """Somebody who owns the server's disk and database, but no offline key: the devices refuse, and go on."""
        tampered = f"{UPDATED}@2.0.1"
        digest = self.stack.intrude("forge", f"{UPDATED}@2.0.0", "2.0.1")
        self.terminal.say(
            f"  {tampered} {digest[:16]}… is in the database with other weights, and no publisher's word."
        )
        self._check_no_rollout_of(tampered)
        self.stack.intrude("hand-out", tampered, GROUP)
        self.terminal.say(
            "  So the intruder writes it into the devices' desired states, past the planning of rollouts."
        )
        wait_for(self._all_refused, "the devices to refuse it", watch=self.stack.check)
        device = self._devices()[0]
        problem = self.api.call("GET", f"/api/v1/devices/{device['id']}", quiet=True)["report"]["problem"]
        self.terminal.table(["on the device's page", ""], [["code", problem["code"]], ["detail", problem["detail"]]])
        self._check(self._all_serve(), "a device does not serve any more")
        self.report.tampered_refused = [d["problem_code"] for d in self._devices()]
        self.terminal.done("each device refused it and serves what it had")
        self._roll_out("taken back", {"adapters": [f"{UPDATED}@2.0.0"]})

    def _check_no_rollout_of(self, ref: str) -> None:
        """The server plans no rollout of what devices would refuse."""
        try:
            self.api.call("POST", "/api/v1/rollouts", {"name": "tampered", "adapters": [ref], "groups": [GROUP]})
        except RefusedError as error:
            self.terminal.say(f"  refused: {error}")
            self._check("release_not_signed" in str(error), f"the rollout was refused for another reason: {error}")
        else:
            raise CheckFailedError(f"the server rolls {ref} out, which no publisher has signed")

    def _devices(self) -> list[Document]:
        found = self.api.call("GET", f"/api/v1/devices?group={GROUP}", quiet=True)["results"]
        return [device for device in found if device["name"] in self.device_names]

    def _all_refused(self) -> bool:
        return all(device["problem_code"] == "release_not_signed" for device in self._devices())

    def telemetry(self) -> None:
        """Decode speed per adapter as the fleet's server knows it."""
        path = "/api/v1/telemetry?metric=decode_tokens_per_s&group_by=adapter_name&step=60"
        self.terminal.command(f'curl "$SOCLE{path}" -H "Authorization: Bearer $TOKEN"')
        with self.terminal.progress("telemetry of every adapter has arrived"):
            wait_for(
                lambda: self._adapters_in(path) >= set(ADAPTERS), "telemetry of every adapter", watch=self.stack.check
            )
        rows = []
        for series in self.api.call("GET", path, quiet=True)["series"]:
            total = series["total"]
            figures = [f"{total[name]:.1f}" for name in ("avg", "p50", "p95", "min", "max")]
            rows.append([series["group"]["adapter_name"] or "(base)", str(total["count"]), *figures])
        self.terminal.table(["adapter", "requests", "avg", "p50", "p95", "min", "max"], rows)
        self.report.telemetry_rows = self._telemetry_rows()
        self.terminal.done(f"{self.report.telemetry_rows} telemetry rows from {len(self.device_names)} devices")

    def show_where_to_look(self) -> None:
        """The last words before the demo waits for Ctrl-C."""
        self.terminal.heading("Look around")
        password = self.stack.password_file.read_text()
        rows = [["dashboard", f"{self.stack.url}/  (user demo, password {password})"]]
        rows.append(["API", f"{self.stack.url}/api/v1/docs  (token in {self.stack.token_file})"])
        rows += [[name, f"{self.device(name).url}/v1  (OpenAI API)"] for name in self.device_names]
        self.terminal.table(["", ""], rows)
        self.terminal.say("Ctrl-C stops everything.")

    def report_json(self) -> str:
        """The report as one line."""
        self.report.adapters = [f"{name}@{version}" for name, version in self.versions.items()]
        return json.dumps(asdict(self.report), ensure_ascii=False)

    def publish_adapter(self, name: str, version: str) -> None:
        """Publish and sign one version of an adapter of the demo."""
        self._publish_adapter(name, version)
        self._sign(f"{name}@{version}")

    def _publish_adapter(self, name: str, version: str) -> None:
        document = {"kind": "adapter", "name": name, "version": version, "base": f"{BASE}@1.0.0"}
        self._publish(MODELS / "adapters" / f"{name}-{version}", document)

    def _publish(self, directory: Path, document: dict[str, Any]) -> None:
        with self.terminal.progress(f"{document['name']}@{document['version']}") as progress:
            release = self.api.publish(directory.relative_to(ROOT), document, progress)
        self.terminal.say(f"  digest {release['digest'][:16]}…, {release['size_bytes'] / 1e6:.1f} MB on the device")

    def _sign(self, *refs: str) -> None:
        """As the publisher would on a machine of its own."""
        command = self.stack.sign_command(*refs)
        self.terminal.command(f"python manage.py {' '.join(command)}")
        self.stack.manage(*command)

    def _roll_out(self, name: str, change: dict[str, Any]) -> None:
        rollout = self.api.call("POST", "/api/v1/rollouts", {"name": name, **change, "groups": [GROUP]})
        path = f"/api/v1/rollouts/{rollout['id']}"
        with self.terminal.progress(f"rollout {name!r} is active on every device") as progress:

            def completed() -> bool:
                now = self.api.call("GET", path, quiet=True)
                counts = now["counts"]
                progress(now["state"], counts.get("active", 0) / max(1, sum(counts.values())))
                self._check(not counts.get("failed"), f"the rollout failed on a device: {now['devices']}")
                return bool(now["state"] == "completed")

            wait_for(completed, "the rollout to complete", watch=self.stack.check)

    def _ask(self, device: str, adapter: str, request: Document) -> None:
        answer = self.device(device).chat(adapter, request["messages"])
        expected = request["answers"][f"{adapter}-{self.versions[adapter]}"]
        right = answer.text == expected
        self.answers.append(answer)
        self.report.requests_sent += 1
        self.report.answers_compared += 1
        self.report.answers_as_expected += right
        measured = f"{answer.decode_tokens_per_s:.0f} tokens/s, first after {answer.ttft_s * 1000:.0f} ms"
        rows = [["asked", words_of(request)], ["answer", answer.text]]
        rows.append(["", f"{'as expected' if right else 'NOT as expected: ' + expected}; {measured}"])
        self.terminal.table([device, f"model={adapter}"], rows)

    def device(self, name: str) -> DeviceApi:
        """The local API of a device, where it listens now."""
        address = json.loads((self.stack.device_directory(name) / "run" / "api.json").read_text())
        if address["url"] not in self._device_apis:
            self._device_apis[address["url"]] = DeviceApi(address["url"])
        return self._device_apis[address["url"]]

    def _engine_pss_bytes(self, name: str) -> int:
        child = self.stack.devices[name].child
        assert child is not None
        children = psutil.Process(child.pid).children(recursive=True)
        return max(process.memory_full_info().pss for process in children)

    def _all_reported(self) -> bool:
        devices = self.api.call("GET", f"/api/v1/devices?group={GROUP}", quiet=True)["results"]
        reported = {d["name"] for d in devices if _is_after(d["last_seen_at"], self._devices_started_at)}
        return set(self.device_names) <= reported

    def _all_serve(self) -> bool:
        return all(self.device(name).serves({BASE, *ADAPTERS}) for name in self.device_names)

    def _adapters_in(self, path: str) -> set[str]:
        return {series["group"]["adapter_name"] for series in self.api.call("GET", path, quiet=True)["series"]}

    def _telemetry_rows(self) -> int:
        return int(self.api.gauge("socle_telemetry_rows"))

    def _check(self, holds: object, otherwise: str) -> None:
        if not holds:
            raise CheckFailedError(otherwise)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.report.seconds[name] = round(time.monotonic() - started, 2)
