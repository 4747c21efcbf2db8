"""`python -m edge_agent run|status|enrol|rotate-key`: the command line, and the one place where parts are made.

Exit codes: 0 well, 1 a bug of ours, 2 wrong usage or setting, 3 another agent runs on the state directory, 4 not
enrolled or refused, 5 the server can't be reached.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import structlog
import typer
from rich.console import Console

from edge_agent import status as status_command
from edge_agent.client import FleetClient, Patience
from edge_agent.config import AgentConfig, load_config
from edge_agent.daemon import Components, Daemon
from edge_agent.device import Device, total_memory_bytes
from edge_agent.engine_child import ChildSettings
from edge_agent.enrolment import enrol as enrol_device
from edge_agent.enrolment import identity_of
from edge_agent.errors import NotEnrolledError, RefusedError, TransientError, UserError
from edge_agent.fetcher import Fetcher
from edge_agent.file_client import FileClient
from edge_agent.gate import Gate
from edge_agent.host import Host, HostSettings
from edge_agent.journal import Journal
from edge_agent.patience import FetchPolicy
from edge_agent.probe import Floors
from edge_agent.quarantine import Quarantine
from edge_agent.recorder import Recorder
from edge_agent.schedule import Backoff
from edge_agent.spool import Spool
from edge_agent.state_dir import StateDir
from edge_agent.states import DEADLINE_S, State
from edge_agent.store import Store
from edge_agent.telemetry import Telemetry
from edge_agent.trust import DeviceKey, Identity, Unsigned, read_identity
from edge_agent.trust_metadata import Source, TrustedMetadata
from edge_agent.trust_revocation import Revocation
from edge_agent.trust_rotation import finish_rotation, rotate_key
from edge_agent.trust_transport import ClientFetcher
from edge_agent.updater import Parts, Updater, UpdaterSettings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The Socle agent of this device.")

StateDirOption = Annotated[Path | None, typer.Option("--state-dir", help="Where the agent keeps everything.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", help="The fleet's URL, for instance https://fleet.example.")
]
TokenOption = Annotated[str | None, typer.Option("--token", help="One-time enrolment token.")]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="TUF root to trust first; not needed if the token pins one.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the device; the host's name if left out.")]


@app.command()
def run(  # noqa: PLR0913, PLR0917 - a command line has as many options as it needs
    state_dir: StateDirOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    name: NameOption = None,
    root: RootOption = None,
    api_port: Annotated[
        int | None, typer.Option(help="Port of the local API; 0 takes any free one. [default: 8455 if free]")
    ] = None,
    api_socket: Annotated[
        Path | None, typer.Option(help="Unix socket for the local API, instead of a port; for its owner alone.")
    ] = None,
    api_token_file: Annotated[
        Path | None, typer.Option(help="File with a token that the local API asks for; mode 600.")
    ] = None,
    local_adapters: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--local-adapters", help="Let the local API load adapters in development from directories.")
    ] = False,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
) -> None:
    """Run the agent until it is stopped; enrols the device first if it isn't yet."""
    given = {"state_dir": state_dir, "server": server, "token": token, "name": name, "root": root}
    api = {"api_port": api_port, "api_socket": api_socket, "api_token_file": api_token_file}
    config = _load({**given, **api, "local_adapters": local_adapters or None, "log_format": log_format})
    _run_to_end(_serve(config))


@app.command()
def enrol(
    state_dir: StateDirOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    name: NameOption = None,
    root: RootOption = None,
) -> None:
    """Give this device its key and its identity."""
    config = _load({"state_dir": state_dir, "server": server, "token": token, "name": name, "root": root})
    _run_to_end(_enrol(config))


@app.command("rotate-key")
def rotate_device_key(state_dir: StateDirOption = None) -> None:
    """Give the device a new key; the fleet refuses the old one from then on. The agent must be stopped."""
    config = _load({"state_dir": state_dir})
    _run_to_end(_rotate_key(config))


@app.command()
def status(
    state_dir: StateDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what the agent has, wants and does."""
    config = _load({"state_dir": state_dir})
    try:
        found = status_command.read_status(StateDir(config.state_dir))
    except UserError as error:
        raise _exit(error) from error
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        status_command.print_status(found, Console())


@app.command()
def pause(state_dir: StateDirOption = None) -> None:
    """Stop downloads until `resume`; what is served goes on."""
    _set_paused(_load({"state_dir": state_dir}), is_paused=True)


@app.command()
def resume(state_dir: StateDirOption = None) -> None:
    """Let downloads go on where they stopped."""
    _set_paused(_load({"state_dir": state_dir}), is_paused=False)


def _set_paused(config: AgentConfig, *, is_paused: bool) -> None:
    marker = StateDir(config.state_dir).paused
    if not marker.parent.is_dir():
        raise _exit(UserError(f"{marker.parent} is no agent's state directory: name it with --state-dir"))
    if is_paused:
        marker.touch()
    else:
        marker.unlink(missing_ok=True)
    typer.echo("Downloads are paused." if is_paused else "Downloads may run.")


async def _serve(config: AgentConfig) -> None:
    state_dir = StateDir(config.state_dir)
    state_dir.make()
    with state_dir.held():
        async with _http_client(config) as http:
            identity = await identity_of(config, state_dir, lambda server: FleetClient(server, Unsigned(), http))
            await finish_rotation(state_dir, identity.device_id, lambda s: FleetClient(identity.server, s, http))
            await assemble(config, state_dir, identity, http).run()


async def _enrol(config: AgentConfig) -> None:
    state_dir = StateDir(config.state_dir)
    state_dir.make()
    with state_dir.held():
        async with _http_client(config) as http:
            identity = await enrol_device(config, state_dir, lambda server: FleetClient(server, Unsigned(), http))
    typer.echo(f"{identity.name} is enrolled at {identity.server} as {identity.device_id}")


async def _rotate_key(config: AgentConfig) -> None:
    state_dir = StateDir(config.state_dir)
    identity = read_identity(state_dir.identity)
    if identity is None:
        raise NotEnrolledError(f"{state_dir.root} holds no enrolled device: name its --state-dir")
    with state_dir.held():
        async with _http_client(config) as http:
            try:
                key = await rotate_key(
                    state_dir, identity.device_id, lambda signer: FleetClient(identity.server, signer, http)
                )
            except RefusedError as error:
                raise NotEnrolledError(f"the server refused the new key ({error.code}): {error}") from error
    typer.echo(f"{identity.name} signs with {key} from now on")


def assemble(config: AgentConfig, state_dir: StateDir, identity: Identity, http: httpx2.AsyncClient) -> Daemon:
    """An agent from its settings and its identity."""
    signer = DeviceKey.open_or_make(state_dir.key).signer(identity.device_id)
    client = FleetClient(identity.server, signer, http)
    store = Store(state_dir.root)
    host = Host(store, _host_settings(config, state_dir), Quarantine(state_dir.quarantine))
    files = FileClient(identity.server, signer, timeout_s=config.request_timeout_s, proxy=config.proxy)
    fetcher = Fetcher(client, files, store, _fetch_policy(config), Gate(config.download_window, state_dir.paused))
    trusted = _trusted_metadata(config, state_dir, client)
    revocation = Revocation(state_dir.revocation, trusted)
    parts = Parts(Journal(state_dir.root), store, client, fetcher, host, total_memory_bytes, trusted)
    updater = Updater(
        parts,
        UpdaterSettings(
            disk_reserve_bytes=config.disk_reserve_bytes,
            spare_adapter_bytes=config.spare_adapter_bytes,
            download_bytes_per_s=config.max_download_bytes_per_s,
            deadline_s={**DEADLINE_S, State.PROBING: config.probe_timeout_s},
            floors=Floors(config.min_decode_tokens_per_s, config.min_free_memory_bytes),
            retry=Backoff(10 * config.retry_first_s, 10 * config.retry_longest_s),
        ),
    )
    telemetry = Telemetry(Spool(state_dir.spool, max_bytes=config.spool_max_bytes), identity.device_id)
    recorder = Recorder(telemetry)
    components = Components(Device(identity), store, client, host, updater, telemetry, recorder, trusted, revocation)
    return Daemon(config, state_dir, components)


def _trusted_metadata(config: AgentConfig, state_dir: StateDir, client: FleetClient) -> TrustedMetadata:
    fetcher = ClientFetcher(client, Patience(config.request_timeout_s, config.min_download_bytes_per_s))
    source = Source(client.metadata_url, client.targets_url, fetcher)
    return TrustedMetadata(state_dir.metadata, state_dir.targets, source, root=state_dir.first_root.read_bytes())


def _host_settings(config: AgentConfig, state_dir: StateDir) -> HostSettings:
    child = ChildSettings(
        command=config.engine_command,
        config={"prefix_cache_dir": str(state_dir.prompt_cache), **config.engine},
        open_timeout_s=config.engine_open_timeout_s,
        heartbeat_interval_s=config.engine_heartbeat_s,
        hang_timeout_s=config.engine_hang_timeout_s,
    )
    return HostSettings(
        child=child,
        max_in_flight=config.max_in_flight,
        ready_wait_s=config.ready_wait_s,
        drain_timeout_s=config.drain_timeout_s,
        businesses=config.businesses,
    )


def _fetch_policy(config: AgentConfig) -> FetchPolicy:
    return FetchPolicy(
        backoff=Backoff(config.retry_first_s, config.retry_longest_s),
        max_retries=config.download_max_retries,
        min_bytes_per_s=config.min_download_bytes_per_s,
        grace_s=config.request_timeout_s,
    )


def _http_client(config: AgentConfig) -> httpx2.AsyncClient:
    # The environment is not read: whom a device talks through is a setting like any other.
    return httpx2.AsyncClient(timeout=config.request_timeout_s, proxy=config.proxy, trust_env=False)


def _load(given: dict[str, Any]) -> AgentConfig:
    try:
        config = load_config(given)
    except UserError as error:
        raise _exit(error) from error
    _configure_log(config.log_format)
    return config


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run until it is done or a signal comes; errors that a person can mend become a line and an exit code."""
    try:
        asyncio.run(_until_signal(work))
    except* (UserError, TransientError) as group:
        raise _exit(_first(group)) from group


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def _first(group: BaseException) -> UserError | TransientError:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, UserError | TransientError)
    return group


def _exit(error: UserError | TransientError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(error.exit_code)


def _configure_log(log_format: Literal["text", "json"]) -> None:
    shown = structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso", utc=True), shown],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


if __name__ == "__main__":
    app()
