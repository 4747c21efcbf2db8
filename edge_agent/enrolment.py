"""Gives a device its identity: a key made here, a one-time token from an operator, an id from the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from edge_agent.client import FleetClient
from edge_agent.config import AgentConfig
from edge_agent.device import agent_version, hardware
from edge_agent.errors import NotEnrolledError, RefusedError, TransientError
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
    key = DeviceKey.open_or_make(state_dir.key)
    request = EnrolRequest(config.token, config.name, key.public_base64(), agent_version(), hardware())
    try:
        answer = await connect(config.server).enrol(request)
    except RefusedError as error:
        raise NotEnrolledError(
            f"the server refused the enrolment ({error.code}): {error}. Ask an operator for a fresh token."
        ) from error
    identity = Identity(answer.device_id, config.name, config.server, answer.poll_interval_s)
    write_identity(state_dir.identity, identity)
    log.info("enrol.done", device_id=identity.device_id, server=identity.server)
    return identity


def _check_server(config: AgentConfig, identity: Identity) -> None:
    if config.server and config.server.rstrip("/") != identity.server.rstrip("/"):
        raise NotEnrolledError(
            f"this device is enrolled at {identity.server}, not at {config.server}: leave --server out, or choose "
            "another --state-dir for the other server",
            code="other_server",
        )
