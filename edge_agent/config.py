"""What a person may decide about an agent. Frozen; unknown keys and bad values are refused by name.

Values come from the command line, else from `SOCLE_AGENT_...` in the environment, else the defaults here.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from edge_agent.business import KNOWN_OPTIONS, read_profile
from edge_agent.errors import UserError
from edge_agent.protocol import Window
from engine.errors import InvalidInputError

PREFIX = "SOCLE_AGENT_"


def _window(value: object) -> object:
    return Window.parse(value) if isinstance(value, str) else value


def _default_state_dir() -> Path:
    return platformdirs.user_state_path("socle-agent")


class AgentConfig(BaseSettings):
    """All settings of one agent."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    state_dir: Path = Field(default_factory=_default_state_dir)
    server: str | None = Field(default=None, pattern=r"^https?://")
    token: str | None = None
    root: Path | None = None
    """The TUF root to begin with, for a device whose enrolment token pins none."""
    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=100)
    proxy: str | None = None

    api_host: str = "127.0.0.1"
    api_port: int | None = Field(default=None, ge=0, le=65535)
    """None takes 8455, or any free port if that is taken."""
    api_socket: Path | None = None
    """A Unix socket to listen on instead of a port."""
    api_token_file: Path | None = None
    """Who asks the local API must send the token in this file."""
    local_adapters: bool = False
    """Whether the local API may load adapters from directories of this device."""
    log_format: Literal["text", "json"] = "text"

    engine: dict[str, Any] = Field(default_factory=dict)
    """Fields of `engine.config.EngineConfig`, as JSON in the environment."""
    businesses: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What this device says of businesses, by the names of their models, as JSON in the environment: fields of
    `engine.business.Business` and `sampling`, over what ships with the adapter."""
    engine_command: tuple[str, ...] = (sys.executable, "-m", "edge_agent.engine_process")
    engine_open_timeout_s: float = Field(default=300.0, gt=0)
    engine_hang_timeout_s: float = Field(default=20.0, gt=0)
    engine_heartbeat_s: float = Field(default=1.0, gt=0)
    max_in_flight: int = Field(default=64, ge=1)
    ready_wait_s: float = Field(default=5.0, ge=0)
    drain_timeout_s: float = Field(default=120.0, ge=0)
    probe_timeout_s: float = Field(default=120.0, gt=0)
    min_decode_tokens_per_s: float = Field(default=0.0, ge=0)
    """A set that is slower in its probe is rolled back."""
    min_free_memory_bytes: int = Field(default=0, ge=0)
    """A set that leaves less of the device's memory is rolled back."""

    request_timeout_s: float = Field(default=30.0, gt=0)
    min_download_bytes_per_s: int = Field(default=1024, ge=1)
    download_max_retries: int = Field(default=8, ge=0)
    retry_first_s: float = Field(default=0.5, gt=0)
    retry_longest_s: float = Field(default=60.0, gt=0)
    longest_poll_backoff_s: float = Field(default=300.0, gt=0)
    max_download_bytes_per_s: int | None = Field(default=None, ge=1)
    """The fleet may set a lower one."""
    download_window: Annotated[Window | None, BeforeValidator(_window), NoDecode] = None
    """When downloads may run, such as `22:00-06:00 Europe/Berlin`. None is at any time."""
    disk_reserve_bytes: int = Field(default=256 << 20, ge=0)
    """Never downloaded into, so that the agent can go on writing."""
    spare_adapter_bytes: int = Field(default=256 << 20, ge=0)
    """Adapters that are not needed now stay within this, as they may come back."""

    telemetry_interval_s: float | None = Field(default=None, gt=0)
    """None sends as often as five polls, at least once a minute."""
    trust_interval_s: float | None = Field(default=None, gt=0)
    """None asks for revoked releases as often as ten polls."""
    sample_interval_s: float = Field(default=10.0, gt=0)
    spool_max_bytes: int = Field(default=64 << 20, ge=1 << 10)


def load_config(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> AgentConfig:
    """The settings with what was given on the command line; raises `UserError` naming what is wrong."""
    known = {PREFIX + name.upper() for name in AgentConfig.model_fields}
    if unknown := sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        raise UserError(f"{unknown[0]} is no setting of the agent: correct or remove it from the environment")
    try:
        config = AgentConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"setting {name}: {first['msg']}") from error
    _check_businesses(config.businesses)
    return config


def _check_businesses(businesses: Mapping[str, Mapping[str, Any]]) -> None:
    for name, options in businesses.items():
        if unknown := sorted(set(options) - KNOWN_OPTIONS):
            raise UserError(f"setting businesses.{name}.{unknown[0]}: there is no such option")
        try:
            read_profile(options)
        except InvalidInputError as error:
            raise UserError(f"setting businesses.{name}: {error}") from error
