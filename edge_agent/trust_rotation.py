"""A new key for a device: the old one vouches for it, it proves itself, and no power loss leaves it without one.

The new key is on the disk before the server hears of it. Until it has its place, whoever is killed in between starts
again here: the server takes the same change twice.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from edge_agent.client import FleetClient
from edge_agent.errors import RefusedError, TransientError
from edge_agent.protocol import KeyRotation
from edge_agent.state_dir import StateDir
from edge_agent.trust import DeviceKey, Signer

log = structlog.get_logger()


async def rotate_key(state_dir: StateDir, device_id: str, connect: Callable[[Signer], FleetClient]) -> str:
    """Make a new key, or go on with one that was made, tell the server, and use it; returns the public key."""
    old, new = DeviceKey.open_or_make(state_dir.key), DeviceKey.open_or_make(state_dir.next_key)
    request = KeyRotation(device_id, new.public_base64(), new.proof_of_possession(device_id))
    try:
        await connect(old.signer(device_id)).rotate_key(request)
    except RefusedError as error:
        if error.code != "bad_signature":
            raise
        await connect(new.signer(device_id)).rotate_key(request)  # the answer to an earlier try was lost
    state_dir.next_key.replace(state_dir.key)
    return new.public_base64()


async def finish_rotation(state_dir: StateDir, device_id: str, connect: Callable[[Signer], FleetClient]) -> None:
    """Go on where a rotation was interrupted, if one was.

    Without a network, or a disk that can be written to, the device serves and this waits.
    """
    if state_dir.next_key.exists():
        try:
            await rotate_key(state_dir, device_id, connect)
        except (TransientError, OSError) as error:
            log.warning("rotation.not_finished", error=str(error))
