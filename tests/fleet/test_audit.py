"""The audit chain: what is added to it, and that no change to it goes unseen."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.migrations.recorder import MigrationRecorder

from fleet.audit import chain
from fleet.audit.models import AuditEntry, AuditHead
from registry.trust.keys import load_key
from registry.trust.repository import root_digest
from tests.fleet.conftest import PUBLISHER

pytestmark = pytest.mark.django_db


def verify(*line: str) -> str:
    out = io.StringIO()
    call_command("audit", "verify", *line, stdout=out)
    return out.getvalue()


@pytest.fixture
def written(enrolled: Any, operator: Any, publish: Any) -> None:
    """A device came, was handed a rollout and reported; then it was tagged and revoked."""
    device = enrolled()
    publish("tiny@1.0.0")
    operator.post("/rollouts", {"base": "tiny@1.0.0", "devices": [device.device_id]})
    device.works_on(device.desired())
    device.commits(device.desired())
    device.commits(device.desired())
    operator.post(f"/devices/{device.device_id}/revoke")


def test_what_operators_do_and_devices_sign_is_in_the_chain(written: None) -> None:
    kinds = list(AuditEntry.objects.values_list("kind", flat=True))
    assert kinds == ["rollout_start", "rollout_handed_out", "reported", "reported", "revoked"]
    assert verify().startswith("5 entries are whole")


def rewrite(**values: Any) -> Callable[[], None]:
    return lambda: AuditEntry.objects.filter(number=2).update(**values) and None


def remove() -> None:
    AuditEntry.objects.filter(number=2).delete()


def cut() -> None:
    AuditEntry.objects.filter(number__gte=3).delete()


def forge_a_report() -> None:
    """A careful forger makes all hashes fit again; what only a device could sign gives it away."""
    entry = AuditEntry.objects.get(number=3)
    entry.detail["proof"]["body"] = entry.detail["proof"]["body"].replace("downloading", "committed")
    entry.save()
    rehash_all()


def rehash_all() -> None:
    previous = "0" * 64
    for entry in AuditEntry.objects.order_by("number"):
        entry.previous_hash = previous
        entry.hash = previous = chain.hash_of(entry)
        entry.save()
    AuditHead.objects.update(hash=previous)


TAMPERED = {
    "content": (rewrite(kind="tagged"), "entry 2 is broken: its content is not what was hashed"),
    "time": (rewrite(at="2020-01-01T00:00:00Z"), "entry 2 is broken: its content"),
    "hash": (rewrite(hash="f" * 64), "entry 2 is broken: its content"),
    "link": (rewrite(previous_hash="f" * 64), "entry 2 is broken: it does not follow"),
    "gap": (remove, "entry 2 is broken: entries 2 to 2 are missing"),
    "end": (cut, "entry 3 is broken: the chain ends at 2, its head says 5"),
    "signature": (forge_a_report, "entry 3 is broken: dev_.* has not signed this report"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_first_broken_entry_is_named(written: None, name: str) -> None:
    tamper, words = TAMPERED[name]
    tamper()
    with pytest.raises(CommandError, match=words):
        verify()


def test_a_chain_written_anew_lacks_the_hash_that_was_noted(written: None) -> None:
    noted = chain.head().hash
    assert verify("--noted", noted)
    chain.append(actor="tests", kind="later", detail={})
    assert verify("--noted", noted)
    remove_last_and_noted()
    with pytest.raises(CommandError, match="written anew"):
        verify("--noted", noted)


def remove_last_and_noted() -> None:
    AuditEntry.objects.filter(number__gte=5).delete()
    last = AuditEntry.objects.order_by("-number").first()
    assert last
    AuditHead.objects.update(number=last.number, hash=last.hash)


@pytest.fixture
def hold(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`manage.py trust` as somebody types it; `key` names one in the directory of `trusted`."""
    monkeypatch.setenv("SOCLE_TRUST_OFFLINE_PASSPHRASE", "words")
    monkeypatch.setattr("getpass.getuser", lambda: "ada")

    def run(*line: str, key: str = "") -> str:
        out = io.StringIO()
        call_command("trust", *line, *(["--key", str(trusted / f"{key}.pem")] if key else []), stdout=out)
        return out.getvalue()

    return run


def keyid(trusted: Path, name: str) -> str:
    return load_key(trusted / f"{name}.pem", b"words").public_key.keyid


def test_ceremonies_are_in_the_chain_with_the_keys_that_signed(
    hold: Callable[..., str], publish: Any, trusted: Path, tmp_path: Path
) -> None:
    tiny = publish("tiny@1.0.0", is_signed=False)
    hold("sign", "tiny@1.0.0", "--publisher", PUBLISHER, key="publisher")
    hold("add-key", "homes", "--artifact", "home", "--new", str(tmp_path / "homes.pem"), key="targets")
    hold("rotate", "homes", "--new", str(tmp_path / "homes-2.pem"), key="targets")
    hold("add-key", "root", "--new", str(tmp_path / "root-2.pem"), key="root")
    hold("revoke", f"root:{keyid(tmp_path, 'root-2')}", key="root")
    hold("revoke", "tiny@1.0.0", key="targets")
    hold("limit", "3600", key="targets")
    entries = list(AuditEntry.objects.all())
    assert {entry.actor for entry in entries} == {"shell:ada"}
    told = [(entry.kind, {k: v for k, v in entry.detail.items() if k != "waits_for_signatures"}) for entry in entries]
    by = {name: {"signed_by": [keyid(trusted, name)]} for name in ("root", "targets", "publisher")}
    new = {name: keyid(tmp_path, name) for name in ("homes", "homes-2", "root-2")}
    assert told == [
        ("trust_sign", {"publisher": PUBLISHER, "releases": {"tiny@1.0.0": tiny.digest}} | by["publisher"]),
        ("trust_add_key", {"role": "homes", "new_key": new["homes"], "artifacts": ["home"]} | by["targets"]),
        ("trust_rotate", {"role": "homes", "new_key": new["homes-2"]} | by["targets"]),
        ("trust_add_key", {"role": "root", "new_key": new["root-2"]} | by["root"]),
        ("trust_revoke", {"role": "root", "revoked_key": new["root-2"]} | by["root"]),
        ("trust_revoke", {"release": "tiny@1.0.0", "digest": tiny.digest} | by["targets"]),
        ("trust_limit", {"max_stale_s": 3600} | by["targets"]),
    ]
    assert verify().startswith("7 entries are whole")


def test_the_first_ceremony_is_in_the_chain(
    db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SOCLE_TRUST_KEY_DIR, settings.SOCLE_TRUST_PASSPHRASE = tmp_path / "online", "words"
    monkeypatch.setenv("SOCLE_TRUST_OFFLINE_PASSPHRASE", "words")
    call_command("trust", "init", "--keys", str(tmp_path), stdout=io.StringIO())
    call_command("trust", "add-key", "root", "--new", str(tmp_path / "r.pem"), "--key", str(tmp_path / "root-1.pem"),
                 stdout=io.StringIO())  # fmt: skip
    first, second = AuditEntry.objects.all()
    assert (first.kind, first.detail["root_sha256"]) == ("trust_init", root_digest())
    assert first.detail["keys"]["root"] == [keyid(tmp_path, f"root-{number}") for number in (1, 2, 3)]
    assert second.detail["waits_for_signatures"] == ["root"]


def test_a_ceremony_that_is_refused_leaves_no_entry(hold: Callable[..., str]) -> None:
    with pytest.raises(CommandError, match="no number of seconds"):
        hold("limit", "soon", key="targets")
    assert not AuditEntry.objects.exists()


def test_the_log_shows_the_newest_entries_of_a_kind(written: None, hold: Callable[..., str]) -> None:
    hold("limit", "3600", key="targets")
    out = io.StringIO()
    call_command("audit", "log", "--last", "2", stdout=out)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["5", "6"]
    out = io.StringIO()
    call_command("audit", "log", "--kind", "trust", stdout=out)
    [line] = out.getvalue().splitlines()
    assert "shell:ada trust_limit" in line
    assert '"max_stale_s":3600' in line


@pytest.mark.parametrize("line", [("audit", "verify"), ("audit", "head"), ("trust", "status")])
def test_a_database_without_tables_is_told_what_to_do(db: None, line: tuple[str, str]) -> None:
    MigrationRecorder.Migration.objects.filter(app="audit").delete()
    with pytest.raises(CommandError, match=r"run `manage.py migrate` first"):
        call_command(*line)


def test_an_empty_chain_is_whole(db: None) -> None:
    assert verify().startswith("0 entries are whole")
