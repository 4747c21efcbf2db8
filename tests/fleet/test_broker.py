"""The broker in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kombu import Connection

from fleet import broker


@pytest.fixture
def queue(tmp_path):
    """A queue with a name of its own: kombu remembers in the process which ones it has bound."""
    broker.register()
    folder, control = tmp_path / "messages", tmp_path / "control"
    folder.mkdir()
    control.mkdir()
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(control)}
    with Connection("filesystem://", transport_options=options) as connection:
        yield connection.SimpleQueue(tmp_path.name)


def test_messages_arrive_once_each(queue) -> None:
    for number in range(20):
        queue.put({"number": number})
    arrived = []
    for _ in range(20):
        message = queue.get_nowait()
        arrived.append(message.payload["number"])
        message.ack()
    assert sorted(arrived) == list(range(20))
    with pytest.raises(queue.Empty):
        queue.get_nowait()


def test_a_message_is_whole_before_it_can_be_seen(queue, tmp_path, monkeypatch) -> None:
    seen = []
    rename = Path.replace

    def look_then_rename(source, target):
        seen.append([path.suffix for path in source.parent.iterdir()])
        json.loads(source.read_text())
        with pytest.raises(queue.Empty):
            queue.get_nowait()
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", look_then_rename)
    queue.put({"number": 1})
    assert seen == [[".tmp"]]
    assert queue.get_nowait().payload == {"number": 1}
