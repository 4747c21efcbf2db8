"""A group's limits reach a real device, and the device keeps to them."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.tour.stack import wait_for
from deploy.tour.story import BASE, GROUP, MODELS, Story
from tests.e2e.conftest import DEVICE

pytestmark = pytest.mark.timeout(300)


def window(*, opens_in_h: int) -> str:
    """Two hours of the day, beginning so many hours from now."""
    start = datetime.now(UTC) + timedelta(hours=opens_in_h)
    return f"{start:%H:%M}-{start + timedelta(hours=2):%H:%M} UTC"


def limit(story: Story, **limits: Any) -> None:
    story.api.call("PATCH", f"/api/v1/groups/{GROUP}", {"limits": limits})


def publish_another(story: Story, directory: Path) -> None:
    """`night@1.0.0`: an adapter of the demo with another scale, so that the device has none of its bytes."""
    shutil.copytree(MODELS / "adapters" / "car-1.0.0", directory)
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1.1 * config["lora_alpha"]}))
    (directory / "socle.json").unlink()
    document = {"kind": "adapter", "name": "night", "version": "1.0.0", "base": f"{BASE}@1.0.0"}
    story.api.publish(directory, document, lambda _step, _share: None)
    story.stack.manage(*story.stack.sign_command("night@1.0.0"))


def test_a_device_downloads_only_within_its_groups_window(story: Story, tmp_path: Path) -> None:
    status = story.stack.device_directory(DEVICE) / "status.json"
    publish_another(story, tmp_path / "night")
    limit(story, download_window=window(opens_in_h=3))
    rollout = story.api.call("POST", "/api/v1/rollouts", {"adapters": ["night@1.0.0"], "groups": [GROUP]})
    path = f"/api/v1/rollouts/{rollout['id']}"

    def is_held_up() -> bool:
        return json.loads(status.read_text())["downloads_held_up_by"] == "outside_window"

    wait_for(is_held_up, "the window to hold the download up", watch=story.stack.check)
    assert not story.device(DEVICE).serves({"night"})
    assert story.api.call("GET", path)["state"] == "running"
    limit(story, download_window=window(opens_in_h=-1), download_bytes_per_s=1 << 20)
    wait_for(lambda: story.device(DEVICE).serves({"night"}), "the device to serve", watch=story.stack.check)
    wait_for(lambda: story.api.call("GET", path)["state"] == "completed", "the rollout", watch=story.stack.check)
    limit(story, download_window=None, download_bytes_per_s=None)
