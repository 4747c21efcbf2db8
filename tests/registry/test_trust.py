"""The TUF repository: ceremonies by their command, what is served, and what python-tuf's own client makes of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from engine.strict_json import decode
from engine.trust_documents import Policy, ReleaseTarget, release_path
from registry.models import Artifact, Release, TrustMetadata
from registry.trust import ceremony, repository
from registry.trust.keys import load_key
from registry.trust.vouched import Vouched, read_vouched

pytestmark = pytest.mark.django_db


class FromDatabase(FetcherInterface):
    """The paths under which the metadata is served, without a server."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        kind, _, path = url.removeprefix("https://fleet.example/").partition("/")
        read = repository.read_metadata if kind == "metadata" else repository.read_target
        content = read(path.removesuffix(".json") if kind == "metadata" else path)
        if content is None:
            raise DownloadHTTPError(f"no {path}", 404)
        yield content


class Ceremony:
    """A person at the command line with the offline keys in a directory."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "offline"
        self.client_root: bytes | None = None
        self.directory = directory

    def run(self, *line: str) -> str:
        out = io.StringIO()
        call_command("trust", *line, stdout=out)
        return out.getvalue()

    def key(self, *names: str) -> list[str]:
        return [part for name in names for part in ("--key", str(self.keys / f"{name}.pem"))]

    def new(self, name: str) -> list[str]:
        return ["--new", str(self.keys / f"{name}.pem")]

    def client(self) -> Updater:
        """A device's view: starts at the first root, keeps what it has seen."""
        for name in ("trusted", "targets"):
            (self.directory / name).mkdir(exist_ok=True)
        self.client_root = self.client_root or repository.read_metadata("1.root")
        url, targets = "https://fleet.example/metadata", "https://fleet.example/targets"
        where = (str(self.directory / "trusted"), url, str(self.directory / "targets"), targets)
        updater = Updater(*where, FromDatabase(), bootstrap=self.client_root)
        updater.refresh()
        return updater

    def read(self, path: str) -> bytes | None:
        updater = self.client()
        info = updater.get_targetinfo(path)
        return Path(updater.download_target(info)).read_bytes() if info else None


@pytest.fixture
def at_table(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Ceremony:
    settings.SOCLE_TRUST_KEY_DIR = tmp_path / "online"
    settings.SOCLE_TRUST_PASSPHRASE = "online words"
    settings.SOCLE_BLOB_DIR = tmp_path / "blobs"
    monkeypatch.setenv("SOCLE_TRUST_OFFLINE_PASSPHRASE", "offline words")
    return Ceremony(tmp_path)


@pytest.fixture
def ready(at_table: Ceremony) -> Ceremony:
    """First keys, and a publisher of `home` and of everything that begins with `car-`."""
    at_table.run("init", "--keys", str(at_table.keys))
    publisher = ["homes", "--artifact", "home", "--artifact", "car-*", *at_table.new("homes")]
    at_table.run("add-key", *publisher, *at_table.key("targets-1"))
    return at_table


def release(name: str, version: str = "1.0.0") -> Release:
    artifact, _ = Artifact.objects.get_or_create(name=name, defaults={"kind": "base"})
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    index = hashlib.sha256(digest.encode()).hexdigest()
    blob = repository_blob(index)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"{}")
    return Release.objects.create(
        artifact=artifact, version=version, version_key=version, digest=digest, manifest=b"{}", size_bytes=1,
        published_by="tests", index_sha256=index,
    )  # fmt: skip


def repository_blob(sha256: str) -> Path:
    from registry.storage import blob_store  # noqa: PLC0415

    return blob_store().path(sha256)


@contextmanager
def refused(words: str) -> Iterator[None]:
    rows = list(TrustMetadata.objects.values_list("role", "version", "is_published"))
    with pytest.raises(CommandError, match=words):
        yield
    assert list(TrustMetadata.objects.values_list("role", "version", "is_published")) == rows


def test_keys_are_encrypted_and_owned(ready: Ceremony, settings: Any) -> None:
    files = [*ready.keys.iterdir(), *Path(settings.SOCLE_TRUST_KEY_DIR).iterdir()]
    assert len(files) == 9
    for file in files:
        assert file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert file.stat().st_mode & 0o777 == 0o600
    assert not any(b"PRIVATE" in bytes(row.content) for row in TrustMetadata.objects.all())


def test_a_client_follows_from_the_first_root_to_a_signed_release(ready: Ceremony) -> None:
    home = release("home")
    assert ready.read(release_path("home", home.digest)) is None
    ready.run("sign", "home@1.0.0", "--publisher", "homes", *ready.key("homes"))
    target = decode(ReleaseTarget, ready.read(release_path("home", home.digest)))
    assert target == ReleaseTarget("base", "home", "1.0.0", home.digest, home.index_sha256)
    assert not read_vouched().is_unsigned(home)


def test_before_there_are_keys_nothing_is_held_against_a_release(at_table: Ceremony) -> None:
    home = release("home")
    assert read_vouched() == Vouched()
    assert not read_vouched().is_unsigned(home)
    at_table.run("init", "--keys", str(at_table.keys))
    assert read_vouched().is_unsigned(home)
    assert "not signed, so no device takes it: home@1.0.0" in at_table.run("status")


def test_a_keeper_gives_the_public_half_alone(ready: Ceremony, tmp_path: Path) -> None:
    told = ready.run("make-key", str(tmp_path / "keeper" / "stick.pem"))
    public = tmp_path / "keeper" / "stick.pub.pem"
    assert str(public) in told
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    (ready.keys / "keeper.pem").write_bytes((tmp_path / "keeper" / "stick.pem").read_bytes())
    ready.run("add-key", "targets", "--public", str(public), *ready.key("root-1", "root-2"))
    assert ready.run("add-key", "phones", *ready.new("phones"), *ready.key("keeper")) == ""
    ready.client()


def test_a_publisher_that_gave_its_public_half_waits_for_its_first_signature(ready: Ceremony) -> None:
    home, phone = release("home"), release("phone")
    ready.run("sign", "home@1.0.0", "--publisher", "homes", *ready.key("homes"))
    ready.run("make-key", str(ready.keys / "phones.pem"))
    public = ["--public", str(ready.keys / "phones.pub.pem")]
    told = ready.run("add-key", "phones", "--artifact", "phone", *public, *ready.key("targets-1"))
    assert "phones waits for signatures" in told
    assert ready.read(release_path("home", home.digest)) is not None
    assert ready.run("sign", "phone@1.0.0", "--publisher", "phones", *ready.key("phones")) == ""
    assert ready.read(release_path("phone", phone.digest)) is not None


def test_a_public_half_is_refused_where_it_is_none(ready: Ceremony) -> None:
    ready.run("make-key", str(ready.keys / "new.pem"))
    public = str(ready.keys / "new.pub.pem")
    with refused("can't be read as a public key.*make-key"):
        ready.run("add-key", "targets", "--public", str(ready.keys / "new.pem"), *ready.key("root-1", "root-2"))
    with refused("keeps offline"):
        ready.run("add-key", "timestamp", "--public", public, *ready.key("root-1", "root-2"))
    with refused("keeps offline"):
        ready.run("add-key", "targets", "--public", public, *ready.new("x"), *ready.key("root-1", "root-2"))
    with refused("can't be made"):
        ready.run("make-key", str(ready.keys / "new.pem"))


def test_of_two_publishers_of_one_name_the_first_is_asked(ready: Ceremony) -> None:
    home = release("home")
    ready.run("add-key", "everything", "--artifact", "*", *ready.new("everything"), *ready.key("targets-1"))
    with refused("may not sign releases of home. They are homes's to sign."):
        ready.run("sign", "home@1.0.0", "--publisher", "everything", *ready.key("everything"))
    signed = repository.latest("everything")
    repository.add_target(signed, release_path("home", home.digest), b"{}")
    repository.stage("everything", signed, [load_key(ready.keys / "everything.pem", b"offline words")])
    assert repository.settle() == ["everything"]
    assert ready.read(release_path("home", home.digest)) is None
    assert read_vouched().is_unsigned(home)


def test_a_publisher_signs_only_below_its_own_path(ready: Ceremony) -> None:
    release("car-radio"), release("phone")
    ready.run("sign", "car-radio@1.0.0", "--publisher", "homes", *ready.key("homes"))
    with refused("may not sign releases of phone"):
        ready.run("sign", "phone@1.0.0", "--publisher", "homes", *ready.key("homes"))


def test_a_client_ignores_what_a_publisher_slips_in_elsewhere(ready: Ceremony) -> None:
    phone = release("phone")
    signed = repository.latest("homes")
    repository.add_target(signed, release_path("phone", phone.digest), b"{}")
    repository.stage("homes", signed, [load_key(ready.keys / "homes.pem", b"offline words")])
    assert repository.settle() == ["homes"]
    assert ready.read(release_path("phone", phone.digest)) is None
    assert read_vouched().is_unsigned(phone)


def test_another_publishers_key_does_not_do(ready: Ceremony) -> None:
    release("home")
    ready.run("add-key", "phones", *ready.new("phones"), *ready.key("targets-2"))
    with refused("none of homes's"):
        ready.run("sign", "home@1.0.0", "--publisher", "homes", *ready.key("phones"))


def test_root_waits_until_its_threshold_has_signed(ready: Ceremony) -> None:
    told = ready.run("add-key", "targets", *ready.new("targets-3"), *ready.key("root-1"))
    assert "root waits for signatures" in told
    assert repository.current("root").signed.version == 1
    assert ready.run("sign", "root", *ready.key("root-3")) == ""
    assert repository.current("root").signed.version == 2
    ready.client()


ROTATIONS = {
    "timestamp": ("timestamp", [], ["root-1", "root-2"]),
    "snapshot": ("snapshot", [], ["root-1", "root-2"]),
    "targets": ("targets", ["targets-3"], ["root-1", "root-2"]),
    "publisher": ("homes", ["homes-2"], ["targets-1"]),
    "desired": ("desired", [], ["targets-1"]),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_keys_rotate_and_clients_follow(ready: Ceremony, name: str) -> None:
    role, new, keys = ROTATIONS[name]
    home = release("home")
    ready.run("sign", "home@1.0.0", "--publisher", "homes", *ready.key("homes"))
    before = ceremony.desired_signer().public_key.keyid
    ready.client()
    ready.run("rotate", role, *ready.key(*keys), *(ready.new(new[0]) if new else []))
    assert ready.read(release_path("home", home.digest)) is not None
    assert (ceremony.desired_signer().public_key.keyid == before) == (name != "desired")
    ready.run("add-key", "others", *ready.new("others"), *ready.key("targets-3" if name == "targets" else "targets-1"))


def test_a_revoked_key_signs_no_more(ready: Ceremony) -> None:
    keyid = repository.current_root().roles["targets"].keyids[0]
    ready.run("revoke", f"targets:{keyid}", *ready.key("root-1", "root-2"))
    told = ready.run("add-key", "phones", *ready.new("phones"), *ready.key("targets-1"))
    assert "targets waits for signatures" in told


def test_the_last_key_stays(ready: Ceremony) -> None:
    keyid = repository.current_root().roles["timestamp"].keyids[0]
    with refused("needs 1 keys and would have 0"):
        ready.run("revoke", f"timestamp:{keyid}", *ready.key("root-1", "root-2"))


def test_a_revoked_release_stands_in_the_policy(ready: Ceremony) -> None:
    home = release("home")
    ready.run("sign", "home@1.0.0", "--publisher", "homes", *ready.key("homes"))
    ready.run("revoke", "home@1.0.0", *ready.key("targets-1"))
    assert decode(Policy, ready.read("policy.json")).revoked == (home.digest,)
    assert read_vouched().is_revoked(home)
    assert "revoked, so no device takes it: home@1.0.0" in ready.run("status")


def test_the_policy_limits_how_stale_metadata_may_be(ready: Ceremony) -> None:
    ready.run("limit", "3600", *ready.key("targets-1"))
    assert decode(Policy, ready.read("policy.json")).max_stale_s == 3600
    ready.run("limit", "none", *ready.key("targets-1"))
    assert decode(Policy, ready.read("policy.json")).max_stale_s is None
    with refused("no number of seconds"):
        ready.run("limit", "soon", *ready.key("targets-1"))


def test_the_beat_signs_anew_before_metadata_expires(ready: Ceremony) -> None:
    assert not repository.refresh_due()
    snapshot, timestamp = repository.current("snapshot").signed.version, repository.current("timestamp").signed.version
    assert repository.refresh_due(now=datetime.now(UTC) + timedelta(hours=13))
    assert repository.current("timestamp").signed.version == timestamp + 1
    assert repository.current("snapshot").signed.version == snapshot
    assert repository.refresh_due(now=datetime.now(UTC) + timedelta(days=4))
    assert repository.current("snapshot").signed.version == snapshot + 1
    ready.client()


def test_refusals_say_what_to_do(ready: Ceremony, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("there is a root already"):
        ready.run("init", "--keys", str(ready.directory / "again"))
    with refused("Give --key FILE"):
        ready.run("rotate", "timestamp")
    with refused("can't be opened as an encrypted key"):
        monkeypatch.setenv("SOCLE_TRUST_OFFLINE_PASSPHRASE", "wrong words")
        ready.run("rotate", "timestamp", *ready.key("root-1"))
    settings.SOCLE_TRUST_PASSPHRASE = ""
    with pytest.raises(repository.RegistryError, match="no passphrase"):
        repository.refresh_due(now=datetime.now(UTC) + timedelta(days=4))
