from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.db import transaction
from django.test import override_settings
from rest_framework.test import APIClient

from engine.artifact import (
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    FileEntry,
    TokenizerInfo,
    digest_of,
)
from engine.strict_json import encode
from fleet.devices import actions as devices
from fleet.devices.models import DeviceGroup
from fleet.operators.actions import create_token
from registry.models import Artifact, Release, ReleaseFile, TrustMetadata, TrustTarget
from registry.storage import blob_store
from registry.trust.ceremony import OfflineKeys, add_publisher, init, sign_releases
from registry.trust.keys import load_key, make_key
from tests.fleet.device_simulator import DeviceSimulator

_ARCHITECTURE = Architecture("qwen3", 64, 128, 1, 2, 1, 32, 100, 1e-6, 1e4, 256, True, False, True)
_TOKENIZER = TokenizerInfo("a" * 64, "b" * 64, (0,))


PUBLISHER = "publishers"
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path, settings: Any) -> None:
    settings.SOCLE_BLOB_DIR = tmp_path / "blobs"
    cache.clear()


@dataclass
class Operator:
    """Somebody with a token; what is to happen after a commit happens before the call returns."""

    http: APIClient
    run_on_commit: Callable[..., Any]

    def get(self, path: str, **query: Any) -> Any:
        return self.http.get(f"/api/v1{path}", query)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        with self.run_on_commit(execute=True):
            return getattr(self.http, method.lower())(f"/api/v1{path}", body, format="json", headers=headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.send("POST", path, body, **headers)


@pytest.fixture
def operator_with(db: None, django_capture_on_commit_callbacks: Any) -> Callable[..., Operator]:
    def make(*scopes: str) -> Operator:
        http = APIClient()
        if scopes:
            _, secret = create_token(name=f"operator {next(_numbers)}", scopes=scopes)
            http.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
        return Operator(http, django_capture_on_commit_callbacks)

    return make


@pytest.fixture
def operator(operator_with: Callable[..., Operator]) -> Operator:
    return operator_with("fleet:read", "fleet:write", "telemetry:read", "registry:read")


@pytest.fixture
def publish(trusted: Path) -> Callable[..., Release]:
    """Puts a signed release straight into the catalogue, with a small file: `publish("home@1.0.0", base=...)`."""

    def make(ref: str, *, base: Release | None = None, content: bytes | None = None, is_signed: bool = True) -> Release:
        name, version = ref.split("@")
        content = content if content is not None else ref.encode() * 100
        sha256 = hashlib.sha256(content).hexdigest()
        files = (FileEntry("adapter.safetensors" if base else "weights.safetensors", len(content), sha256),)
        if base:
            binding = BaseBinding(base.digest, _TOKENIZER.tokenizer_sha256, _TOKENIZER.chat_template_sha256)
            manifest: Any = AdapterManifest(binding, {"model.layers.0.self_attn.q_proj": 8}, files)
        else:
            manifest = BaseManifest(_ARCHITECTURE, _TOKENIZER, "int4", files)
        path = blob_store().path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        artifact, _ = Artifact.objects.get_or_create(name=name, defaults={"kind": "adapter" if base else "base"})
        release = Release.objects.create(
            artifact=artifact,
            version=version,
            version_key=version,
            digest=digest_of(manifest),
            manifest=encode(manifest),
            size_bytes=len(content),
            base=base,
            published_by="tests",
        )
        ReleaseFile.objects.create(release=release, path=files[0].path, sha256=sha256, size_bytes=len(content))
        if is_signed:
            sign(release, trusted)
        return release

    return make


def sign(release: Release, keys: Path) -> None:
    """As its publisher would, with the keys of `trusted`."""
    sign_releases(publisher=PUBLISHER, releases=[release], key=load_key(keys / "publisher.pem", b"words"))


@pytest.fixture(scope="session")
def ceremony_rows(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """The keys and metadata of a fleet after its ceremony, made once: the online keys' directory, and all rows."""
    keys = tmp_path_factory.mktemp("keys")
    with django_db_blocker.unblock(), transaction.atomic(), override_settings(**trust_settings(keys)):
        offline = {role: OfflineKeys([make_key(keys / f"{role}.pem", b"words")], 1) for role in ("root", "targets")}
        init(**offline)
        publisher = make_key(keys / "publisher.pem", b"words")
        targets = offline["targets"].signers
        add_publisher(
            name=PUBLISHER,
            artifacts=["*"],
            publisher=publisher.public_key,
            publisher_signs=[publisher],
            keys=targets,
        )
        rows = [*TrustMetadata.objects.all(), *TrustTarget.objects.all()]
        transaction.set_rollback(True)
    return keys, rows


def trust_settings(keys: Path) -> dict[str, Any]:
    return {"SOCLE_TRUST_KEY_DIR": keys, "SOCLE_TRUST_PASSPHRASE": "words"}


@pytest.fixture
def trusted(db: None, ceremony_rows: tuple[Path, list[Any]], settings: Any) -> Path:
    """The fleet has had its ceremony; where its keys are."""
    keys, rows = ceremony_rows
    for name, value in trust_settings(keys).items():
        setattr(settings, name, value)
    for model in (TrustMetadata, TrustTarget):
        model.objects.bulk_create([row for row in rows if isinstance(row, model)], ignore_conflicts=True)
    return keys


@pytest.fixture
def enrolment_token(trusted: Path) -> Callable[..., str]:
    def make(*, group: str | None = None, tags: tuple[str, ...] = (), lifetime: timedelta = timedelta(hours=1)) -> str:
        if group:
            DeviceGroup.objects.get_or_create(name=group)
        made = devices.create_enrolment_tokens(count=1, group=group, tags=tags, lifetime=lifetime, actor="tests")
        return made[0][1]

    return make


@pytest.fixture
def enrolled(
    enrolment_token: Callable[..., str], django_capture_on_commit_callbacks: Any
) -> Callable[..., DeviceSimulator]:
    """Enrolled devices: `enrolled("kitchen", group="home")`. Their reports have their consequences at once."""

    def make(name: str = "kitchen", **token: Any) -> DeviceSimulator:
        device = DeviceSimulator(name)
        assert device.enrol(enrolment_token(**token)).status_code == 201
        plain_call = device.call

        def call(*args: Any, **kwargs: Any) -> Any:
            with django_capture_on_commit_callbacks(execute=True):
                return plain_call(*args, **kwargs)

        device.call = call
        return device

    return make
