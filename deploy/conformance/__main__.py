"""`client --metadata-dir DIR [...] init|refresh|download`: commands and exit codes as the suite's CLIENT-CLI.md says.

`./dev conformance` runs the suite if it is installed. The client is the agent's `TrustedMetadata`, over its own
downloader; only where it keeps its files is laid out as the suite wants it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import httpx2

from edge_agent.client import FleetClient, Patience
from edge_agent.errors import AgentError
from edge_agent.journal import replace_file
from edge_agent.trust import Unsigned
from edge_agent.trust_metadata import Source, TrustedMetadata
from edge_agent.trust_transport import ClientFetcher

PATIENCE = Patience(grace_s=10.0, min_bytes_per_s=1024)


async def refresh(arguments: argparse.Namespace) -> None:
    """Bring the metadata up to date."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        await _trusted(arguments, http).refresh()


async def download(arguments: argparse.Namespace) -> None:
    """Bring targets, in order, by one client; raises `LookupError` for one that the metadata does not know."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        trusted = _trusted(arguments, http)
        for path in arguments.target_name:
            if await trusted.target(path) is None:
                raise LookupError(f"{path} is no target")


def _trusted(arguments: argparse.Namespace, http: httpx2.AsyncClient) -> TrustedMetadata:
    fetcher = ClientFetcher(FleetClient(arguments.metadata_url, Unsigned(), http), PATIENCE)
    source = Source(arguments.metadata_url, arguments.target_base_url or "", fetcher)
    return TrustedMetadata(arguments.metadata_dir, arguments.target_dir, source, root=None)


def main() -> int:
    """0 if it went well, 1 if not."""
    parser = argparse.ArgumentParser(prog="client", description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    arguments = parser.parse_args()
    try:
        if arguments.command == "init":
            replace_file(arguments.metadata_dir / "root.json", arguments.trusted_root.read_bytes())
        else:
            asyncio.run((refresh if arguments.command == "refresh" else download)(arguments))
    except (AgentError, LookupError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {getattr(error, 'code', type(error).__name__)}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
