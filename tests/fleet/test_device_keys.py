"""A device's key: replaced by one that the old key signs for and that proves itself, by no other."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent import protocol
from engine.strict_json import encode
from fleet.audit.models import AuditEntry
from fleet.devices import actions
from fleet.devices.models import Device


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def rotation(device: Any, new: Ed25519PrivateKey, *, signed_by: Ed25519PrivateKey | None = None) -> bytes:
    signed = protocol.rotation_signing_input(device_id=device.device_id, public_key=public(new))
    proof = base64.b64encode((signed_by or new).sign(signed)).decode()
    return encode(protocol.KeyRotation(device.device_id, public(new), proof))


def test_the_new_key_counts_and_the_old_one_no_more(enrolled: Any) -> None:
    device, new = enrolled(), Ed25519PrivateKey.generate()
    body = rotation(device, new)
    assert device.call("POST", "key", body).status_code == 204
    old, device.key = device.key, new
    assert device.call("GET", "desired").status_code == 200
    assert device.call("GET", "desired", key=old).json()["code"] == "bad_signature"
    assert device.call("POST", "key", body).status_code == 204  # the answer was lost
    assert AuditEntry.objects.filter(kind="key_rotated").count() == 1


def test_a_key_must_prove_itself(enrolled: Any) -> None:
    device = enrolled()
    body = rotation(device, Ed25519PrivateKey.generate(), signed_by=device.key)
    response = device.call("POST", "key", body)
    assert (response.status_code, response.json()["code"]) == (422, "bad_device_data")
    assert Device.objects.get().public_key == device.public_key


def test_another_devices_key_is_refused(enrolled: Any) -> None:
    device, other = enrolled("one"), enrolled("other")
    assert device.call("POST", "key", rotation(device, other.key)).status_code == 422


def test_a_device_speaks_for_itself(enrolled: Any) -> None:
    device, other = enrolled("one"), enrolled("other")
    assert device.call("POST", "key", rotation(other, Ed25519PrivateKey.generate())).status_code == 403


@pytest.mark.parametrize("key", [None, "stranger"])
def test_only_the_devices_own_key_may_name_the_next(enrolled: Any, key: str | None) -> None:
    device = enrolled()
    if key is None:
        actions.revoke(device=Device.objects.get(), actor="tests")
    signer = {"key": Ed25519PrivateKey.generate()} if key else {}
    response = device.call("POST", "key", rotation(device, Ed25519PrivateKey.generate()), **signer)
    assert response.status_code in (401, 403)
