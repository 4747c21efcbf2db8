from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from fleet import health
from fleet.bootstrap import load_or_create_secret_key

READY = {"database": "ok", "migrations": "ok", "blobs": "ok", "broker": "ok"}


@pytest.fixture(autouse=True)
def _blob_dir(settings: Any) -> None:
    settings.SOCLE_BLOB_DIR.mkdir()


def test_the_process_lives_without_asking_the_database(client: Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_ready_when_all_is_there(client: Client, db: None) -> None:
    response = client.get("/readyz")
    assert (response.status_code, response.json()["checks"]) == (200, READY)


def test_not_ready_without_the_blob_directory(client: Client, db: None, settings: Any, tmp_path: Path) -> None:
    settings.SOCLE_BLOB_DIR = tmp_path / "gone"
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "SOCLE_BLOB_DIR" in response.json()["checks"]["blobs"]


def test_not_ready_with_migrations_to_apply(client: Client, db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'rollouts'")
    response = client.get("/readyz")
    assert (response.status_code, "migrate" in response.json()["checks"]["migrations"]) == (503, True)


def test_not_ready_while_the_broker_is_away(client: Client, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    away = health.app.connection_for_write("redis://127.0.0.1:1/0", connect_timeout=1)
    monkeypatch.setattr(health.app, "connection_for_write", lambda **_: away)
    response = client.get("/readyz")
    assert (response.status_code, response.json()["checks"]["broker"]) == (503, "failed, see the server's log")


def test_metrics_are_read_from_the_database(client: Client, enrolled: Any, operator: Any, publish: Any) -> None:
    base = publish("tiny@1.0.0")
    device = enrolled()
    operator.post("/rollouts", {"base": "tiny", "devices": [device.device_id]})
    assert 'socle_rollouts{state="running"} 1.0' in client.get("/metrics").content.decode()
    device.commits(device.desired())
    lines = client.get("/metrics").content.decode().splitlines()
    assert 'socle_devices{status="online"} 1.0' in lines
    assert 'socle_devices{status="failed"} 0.0' in lines
    assert 'socle_rollouts{state="completed"} 1.0' in lines
    assert f'socle_devices_serving{{digest="{base.digest}",name="tiny",version="1.0.0"}} 1.0' in lines


def test_the_secret_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret.key"
    path.parent.mkdir()
    key = load_or_create_secret_key(path)
    assert len(key) > 50
    assert load_or_create_secret_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
