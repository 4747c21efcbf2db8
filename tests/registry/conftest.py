from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from fleet.operators.actions import create_token
from tests.registry.sources import Files, adapter_files, base_files, tar_of

OCTETS = "application/offset+octet-stream"


class Operator:
    """A person with a token, who does over HTTP what they would do with curl."""

    def __init__(self, client: Client, name: str, run_on_commit: Callable[..., Any]) -> None:
        self.client = client
        self.name = name
        self._run_on_commit = run_on_commit

    def get(self, path: str, **query: str) -> Any:
        return self.client.get(f"/api/v1{path}", query)

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """A JSON request; what is to happen after its commit happens."""
        with self._run_on_commit(execute=True):
            return self.client.generic(
                method, f"/api/v1{path}", "" if body is None else json.dumps(body), content_type="application/json"
            )

    def announce(self, archive: bytes, **document: Any) -> Any:
        announced = {"sha256": hashlib.sha256(archive).hexdigest(), "size_bytes": len(archive), **document}
        return self.send("POST", "/publications", announced)

    def patch(self, url: str, data: bytes, offset: int | str = 0, **headers: str) -> Any:
        headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS, **headers}
        return self.client.generic("PATCH", url, data, content_type=headers.pop("Content-Type"), headers=headers)

    def publish_archive(self, archive: bytes, **document: Any) -> dict[str, Any]:
        """Announce, send, finish; the publication as it is after the worker has done its work."""
        publication = self.announce(archive, **document).json()
        assert self.patch(publication["upload"]["url"], archive).status_code == 204
        assert self.send("POST", f"/publications/{publication['id']}/finish").status_code == 202
        return self.get(f"/publications/{publication['id']}").json()

    def publish_base(self, name: str = "tiny", version: str = "1.0.0", files: Files | None = None) -> dict[str, Any]:
        archive = tar_of(base_files() if files is None else files)
        return self.publish_archive(archive, kind="base", name=name, version=version)

    def publish_adapter(
        self, name: str = "home", version: str = "1.0.0", base: str = "tiny", files: Files | None = None
    ) -> dict[str, Any]:
        archive = tar_of(adapter_files() if files is None else files)
        return self.publish_archive(archive, kind="adapter", name=name, version=version, base=base)


@pytest.fixture
def blob_dir(tmp_path: Path, settings: Any) -> Path:
    settings.SOCLE_BLOB_DIR = tmp_path / "blobs"
    return settings.SOCLE_BLOB_DIR


@pytest.fixture
def operator_with(
    db: None, blob_dir: Path, django_capture_on_commit_callbacks: Callable[..., Any]
) -> Callable[..., Operator]:
    """Makes operators: `operator_with("registry:read", name="reader")`."""

    def make(*scopes: str, name: str = "someone") -> Operator:
        _, secret = create_token(name=name, scopes=scopes)
        return Operator(Client(headers={"Authorization": f"Bearer {secret}"}), name, django_capture_on_commit_callbacks)

    return make


@pytest.fixture
def publisher(operator_with: Callable[..., Operator]) -> Operator:
    return operator_with("registry:read", "registry:publish", "registry:admin", name="publisher")


@pytest.fixture
def stored(blob_dir: Path) -> Callable[[], list[str]]:
    """Everything that lies in the store, but for the lock."""

    def listing() -> list[str]:
        files = (path.relative_to(blob_dir) for path in blob_dir.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if str(path) != "lock")

    return listing
