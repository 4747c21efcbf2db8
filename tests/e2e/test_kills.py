"""SIGKILL for the server, the worker and the agent, as power loss would: nothing that was promised may be lost."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from deploy.demo.demo_requests import requests
from deploy.tour.api import archive_of
from deploy.tour.load import Load
from deploy.tour.stack import wait_for
from deploy.tour.story import MODELS, Story

DEVICE = "device-1"
pytestmark = pytest.mark.timeout(300)


def counted_requests(story: Story, adapter: str) -> int:
    """Requests for an adapter that the fleet's telemetry knows of."""
    path = "/api/v1/telemetry?metric=requests&group_by=adapter_name&step=60"
    series = story.api.call("GET", path)["series"]
    return sum(round(s["total"]["sum"]) for s in series if s["group"]["adapter_name"] == adapter)


@contextmanager
def load_on(story: Story, adapter: str, answered: Counter[str]) -> Iterator[Load]:
    """Requests to the device while the block runs, each of which must be answered."""
    with Load({DEVICE: story.device(DEVICE)}, adapter, requests()[adapter][0]["messages"]) as load:
        yield load
    answered[adapter] += load.num_sent
    assert not load.errors


def restart_server(story: Story) -> None:
    story.stack.server.start()
    story.stack.wait_ready()


def assert_all_counted(story: Story, adapter: str, answered: Counter[str]) -> None:
    expected = answered[adapter]
    wait_for(lambda: counted_requests(story, adapter) >= expected, f"{expected} requests in the telemetry")
    time.sleep(2 * story.stack.poll_interval_s)
    assert counted_requests(story, adapter) == expected


def test_a_killed_server_loses_no_sample_and_no_request(story: Story, answered: Counter[str]) -> None:
    with load_on(story, "car", answered) as load:
        load.wait_for_more(5)
        story.stack.server.kill()
        load.wait_for_more(20)
        restart_server(story)
        load.wait_for_more(5)
    assert_all_counted(story, "car", answered)


def test_an_upload_goes_on_where_a_killed_server_left_it(story: Story) -> None:
    archive = archive_of(MODELS / "adapters" / "summary-1.0.0")
    changed = archive + bytes(10240)
    document = {"kind": "adapter", "name": "resumed", "version": "1.0.0", "base": "demo-base@1.0.0"}
    announced = {**document, "sha256": hashlib.sha256(changed).hexdigest(), "size_bytes": len(changed)}
    publication = story.api.call("POST", "/api/v1/publications", announced)
    half = len(changed) // 2
    url = f"{story.stack.url}{httpx2.URL(publication['upload']['url']).path}"
    headers = {"Authorization": f"Bearer {story.api.token}", "Content-Type": "application/offset+octet-stream"}
    httpx2.patch(url, content=changed[:half], headers={**headers, "Upload-Offset": "0"}).raise_for_status()
    story.stack.server.kill()
    restart_server(story)
    offset = httpx2.head(url, headers=headers).headers["Upload-Offset"]
    assert int(offset) == half
    httpx2.patch(url, content=changed[half:], headers={**headers, "Upload-Offset": offset}).raise_for_status()
    story.api.call("POST", f"/api/v1/publications/{publication['id']}/finish")
    release = story.api.wait_published(publication, lambda _step, _share: None)
    assert (release["name"], release["version"]) == ("resumed", "1.0.0")


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.0])
def test_a_killed_worker_publishes_all_the_same_and_once(story: Story, tmp_path: Path, delay_s: float) -> None:
    name = f"worker-{round(delay_s * 10)}"
    source = MODELS / "adapters" / "home-1.0.0"
    document = {"kind": "adapter", "name": name, "version": "1.0.0", "base": "demo-base@1.0.0"}
    archive = archive_of(source)
    announced = {**document, "sha256": hashlib.sha256(archive).hexdigest(), "size_bytes": len(archive)}
    publication = story.api.call("POST", "/api/v1/publications", announced)
    story.api.send(publication["upload"], archive, source.name, lambda _step, _share: None)
    publication = story.api.call("POST", f"/api/v1/publications/{publication['id']}/finish")
    time.sleep(delay_s)
    story.stack.worker.kill()
    story.stack.worker.start()
    release = story.api.wait_published(publication, lambda _step, _share: None)
    assert release["name"] == name
    assert len(story.api.call("GET", f"/api/v1/releases?name={name}")["results"]) == 1


@pytest.mark.parametrize(("delay_s", "version"), [(0.0, "2.0.0"), (0.7, "1.0.0"), (1.5, "2.0.0")])
def test_a_killed_agent_comes_back_and_reaches_the_desired_set(
    story: Story, answered: Counter[str], delay_s: float, version: str
) -> None:
    story.publish_adapter("home", version)
    with load_on(story, "home", answered) as load:
        load.wait_for_more(10)
    rollout = story.api.call("POST", "/api/v1/rollouts", {"adapters": [f"home@{version}"], "groups": ["demo"]})
    time.sleep(delay_s)
    agent = story.stack.devices[DEVICE]
    agent.kill()
    agent.start()
    wait_for(lambda: story.device(DEVICE).serves({"home"}), "the device to serve again", watch=story.stack.check)
    wait_for(
        lambda: story.api.call("GET", f"/api/v1/rollouts/{rollout['id']}")["state"] == "completed",
        "the rollout to complete",
        watch=story.stack.check,
    )
    assert_all_counted(story, "home", answered)


def test_the_device_serves_from_its_disk_while_the_server_is_away(story: Story, answered: Counter[str]) -> None:
    story.stack.server.kill()
    agent = story.stack.devices[DEVICE]
    agent.kill()
    agent.start()
    try:
        wait_for(lambda: story.device(DEVICE).serves({"home"}), "the device to serve", watch=agent.check)
        with load_on(story, "home", answered) as load:
            load.wait_for_more(3)
    finally:
        restart_server(story)
    assert_all_counted(story, "home", answered)


def test_one_agent_to_a_state_directory(story: Story) -> None:
    second = story.stack.device_process(DEVICE, None)
    second.name = second.log.stem + "-second"
    second.log = second.log.with_stem(second.name)
    second.start()
    assert second.child is not None
    assert second.child.wait(60) == 3
    assert "another agent" in second.log.read_text()
    assert json.loads((story.stack.device_directory(DEVICE) / "identity.json").read_text())
