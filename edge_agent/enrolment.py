"""Gives a device its identity: a key made here, a one-time token from an operator, an id from the fleet.

And whom it trusts: the first TUF root comes as a file, or from the server if the operator's token has its SHA-256.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import structlog

from edge_agent.client import FleetClient
from edge_agent.config import AgentConfig
from edge_agent.device import agent_version, hardware
from edge_agent.errors import NotEnrolledError, RefusedError, TransientError
from edge_agent.journal import replace_file
from edge_agent.protocol import EnrolRequest
from edge_agent.schedule import Backoff
from edge_agent.state_dir import StateDir
from edge_agent.trust import DeviceKey, Identity, read_identity, write_identity

log = structlog.get_logger()

Connect = Callable[[str], FleetClient]
"""A client for a server that doesn't sign."""


async def identity_of(config: AgentConfig, state_dir: StateDir, connect: Connect) -> Identity:
    """The device's identity, enrolling it if it has none; waits for a server that can't be reached."""
    identity = read_identity(state_dir.identity)
    if identity:
        _check_server(config, identity)
        if not state_dir.first_root.exists():
            _keep_root(state_dir, _root_file(config, _NO_ROOT))
        return identity
    backoff, num_failures = Backoff(1.0, 60.0), 0
    while True:
        try:
            return await enrol(config, state_dir, connect)
        except TransientError as error:
            num_failures += 1
            delay_s = backoff.delay_s(num_failures, error.retry_after_s)
            log.warning("enrol.failed", code=error.code, error=str(error), delay_s=delay_s)
            await asyncio.sleep(delay_s)


async def enrol(config: AgentConfig, state_dir: StateDir, connect: Connect) -> Identity:
    """Make a key, trade the token for an id, and keep both."""
    if read_identity(state_dir.identity):
        raise NotEnrolledError(
            f"{state_dir.root} holds the identity of an enrolled device already: choose another --state-dir, "
            "or remove identity.json and device.key to enrol it as a new device",
            code="already_enrolled",
        )
    if not config.server or not config.token:
        raise NotEnrolledError(
            "this device is not enrolled yet: give --server URL and --token TOKEN (an operator makes tokens with "
            "POST /api/v1/enrolment-tokens)"
        )
    token, _, pin = config.token.partition(".")
    given = None if pin and config.root is None else _root_file(config, _NO_ROOT)
    key = DeviceKey.open_or_make(state_dir.key)
    request = EnrolRequest(
        token, config.name, key.public_base64(), agent_version(), hardware(), root_sha256="" if given else pin
    )
    try:
        answer = await connect(config.server).enrol(request)
    except RefusedError as error:
        raise NotEnrolledError(
            f"the server refused the enrolment ({error.code}): {error}. Ask an operator for a fresh token."
        ) from error
    _keep_root(state_dir, given or _pinned_root(answer.root.encode(), pin))
    identity = Identity(answer.device_id, config.name, config.server, answer.poll_interval_s)
    write_identity(state_dir.identity, identity)
    log.info("enrol.done", device_id=identity.device_id, server=identity.server)
    return identity


_NO_ROOT = (
    "this device does not know whom to trust: give --root FILE (the fleet's 1.root.json, or a newer one), or a token "
    "that pins the root; the operator sees its SHA-256 with `manage.py trust status`"
)


def _root_file(config: AgentConfig, otherwise: str) -> bytes:
    if config.root is None:
        raise NotEnrolledError(otherwise, code="no_root")
    try:
        return config.root.read_bytes()
    except OSError as error:
        raise NotEnrolledError(f"{config.root} can't be read ({error.strerror})", code="no_root") from error


def _pinned_root(root: bytes, pin: str) -> bytes:
    """What the server sent, if it is what the operator meant."""
    if hashlib.sha256(root).hexdigest() != pin:
        raise NotEnrolledError(
            f"the server sent another root than the token's, which begins with {pin[:12]}: look for an intruder, then "
            "ask for a fresh token",
            code="root_mismatch",
        )
    return root


def _keep_root(state_dir: StateDir, root: bytes) -> None:
    replace_file(state_dir.first_root, root)


def _check_server(config: AgentConfig, identity: Identity) -> None:
    if config.server and config.server.rstrip("/") != identity.server.rstrip("/"):
        raise NotEnrolledError(
            f"this device is enrolled at {identity.server}, not at {config.server}: leave --server out, or choose "
            "another --state-dir for the other server",
            code="other_server",
        )
