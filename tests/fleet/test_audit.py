"""The audit chain: what is added to it, and that no change to it goes unseen."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from fleet.audit import chain
from fleet.audit.models import AuditEntry, AuditHead

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


def test_an_empty_chain_is_whole(db: None) -> None:
    assert verify().startswith("0 entries are whole")
