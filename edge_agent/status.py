"""The `status` command: asks the running agent, else reads what it last wrote, and prints it for people."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from edge_agent.api_gate import read_token
from edge_agent.api_listener import Address
from edge_agent.errors import NotEnrolledError, UserError
from edge_agent.state_dir import StateDir

_BUSINESS_LIMITS = {
    "max_running": "at a time",
    "tokens_per_minute": "tokens a minute",
    "max_context_tokens": "tokens of context",
    "memory_bytes": "bytes",
}


def read_status(state_dir: StateDir) -> dict[str, Any]:
    """The agent's status with `is_running`; raises `NotEnrolledError` if no agent ever ran here."""
    is_running = state_dir.is_held()
    status = (_ask(state_dir) if is_running else None) or _last_written(state_dir)
    if status is None:
        raise NotEnrolledError(
            f"no agent has run on {state_dir.root} yet: start one with `python -m edge_agent run --state-dir "
            f"{state_dir.root} --server URL --token TOKEN`"
        )
    return {**status, "is_running": is_running}


def _ask(state_dir: StateDir) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, TypeError, UserError, httpx2.HTTPError):
        address = Address(**json.loads(state_dir.api.read_bytes()))
        token = read_token(Path(address.token_file)) if address.token_file else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=address.socket, trust_env=False), timeout=5.0) as client:
            document = client.get(f"{address.url}/socle/status", headers=headers).raise_for_status().json()
        return document if isinstance(document, dict) else None
    return None


def _last_written(state_dir: StateDir) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        document = json.loads(state_dir.status.read_bytes())
        return document if isinstance(document, dict) else None
    return None


def print_status(status: dict[str, Any], console: Console) -> None:
    """One table; what is wrong is red."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _rows(status):
        table.add_row(label, text)
    console.print(table)


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    device, server, telemetry = status["device"], status["server"], status["telemetry"]
    rows = [
        ("Agent", _agent(status)),
        ("Device", f"{device['name']} ({device['device_id']})"),
        ("Server", f"{server['url']}, {_contact(server)}"),
        ("State", _state(status)),
        ("Has", _set(status["has"])),
    ]
    if status["wants"] and status["wants"] != status["has"]:
        rows.append(("Wants", _set(status["wants"])))
    if problem := status["problem"]:
        rows.append(("Problem", f"[red]{problem['code']}[/red]: {problem['detail']}"))
    if quarantined := status.get("quarantined"):
        digests = ", ".join(digest[:12] for digest in quarantined)
        rows.append(("Not run", f"[red]{digests}[/red]: the engine crashed while it ran them; roll out other versions"))
    rows.append(("Engine", _engine(status["engine"])))
    if memory := status["engine"].get("memory_bytes"):
        rows.append(("Memory", _memory(memory)))
    if businesses := status.get("businesses"):
        rows.append(("Businesses", "\n".join(map(_business, businesses))))
    if requests := status.get("requests"):
        rows.append(("Requests", "\n".join(_requests(name, figures) for name, figures in sorted(requests.items()))))
    rows.append(("Speed", _speed(status["speed"])))
    rows.append(("Local API", status["api"]))
    rows.append(("Telemetry", f"{telemetry['batches']} batches wait, {_mebibytes(telemetry['spool_bytes'])}"))
    return rows


def _agent(status: dict[str, Any]) -> str:
    agent = status["agent"]
    if status["is_running"]:
        return f"{agent['version']}, process {agent['pid']}, up {_duration(time.time() - agent['started_at_s'])}"
    return f"[red]not running[/red]; last seen {_duration(time.time() - status['written_at_s'])} ago"


def _contact(server: dict[str, Any]) -> str:
    if server["problem"]:
        return f"[red]{server['problem']}[/red]"
    at_s = server["last_contact_at_s"]
    return f"answered {_duration(time.time() - at_s)} ago" if at_s else "not reached yet"


def _state(status: dict[str, Any]) -> str:
    progress = status["progress"]
    if not progress:
        return str(status["state"])
    share = progress["done_bytes"] / max(progress["total_bytes"], 1)
    held_up = f" ({reason.replace('_', ' ')})" if (reason := status.get("downloads_held_up_by")) else ""
    return f"{status['state']}, {share:.0%} of {_mebibytes(progress['total_bytes'])}{held_up}"


def _set(served: dict[str, Any] | None) -> str:
    if not served or not served["base"]:
        return f"revision {served['revision']}, nothing" if served else "nothing yet"
    lines = [f"revision {served['revision']}", *map(_release, (served["base"], *served["adapters"]))]
    return "\n".join(lines)


def _release(release: dict[str, str]) -> str:
    return f"  {release['name']} {release['version']}  {release['digest'][:12]}"


def _engine(engine: dict[str, Any]) -> str:
    restarts = f"{engine['restarts']} restarts"
    if engine["state"] != "serving":
        why = f" ({engine['why']})" if engine.get("why") else ""
        return f"[red]{engine['state']}[/red]{why}, {restarts}"
    return (
        f"{engine['backend']}, process {engine['pid']}, {_mebibytes(engine['pss_bytes'])} PSS, "
        f"{engine['in_flight']} requests in flight, {restarts}"
    )


def _memory(sizes: dict[str, int]) -> str:
    """By kind, the largest first."""
    kinds = sorted(((size, kind) for kind, size in sizes.items() if kind != "pss" and size), reverse=True)
    return ", ".join(f"{kind.replace('_', ' ')} {_mebibytes(size)}" for size, kind in kinds)


def _business(business: dict[str, Any]) -> str:
    extras = [f"at most {business[key]} {word}" for key, word in _BUSINESS_LIMITS.items() if business[key] is not None]
    if business["prompt_cache"]:
        extras.append("keeps prompts")
    named = "" if business["name"] == business["model"] else f" ({business['name']})"
    facts = [business["deadline"], f"priority {business['priority']}", *extras]
    return f"  {business['model']}{named}: {', '.join(facts)}"


def _requests(business: str, figures: dict[str, float]) -> str:
    """What a business's requests got since the agent started."""
    lost = [f"{kind} {figures[kind]}" for kind in ("refused", "failed", "cancelled") if figures[kind]]
    counted = ", ".join([f"requests {figures['requests']}", *lost])
    tokens = f"in {figures['prefill_tokens']} and {figures['cached_tokens']} cached, out {figures['decode_tokens']}"
    first = f"{1000 * figures['ttft_p50_s']:.0f}/{1000 * figures['ttft_p99_s']:.0f} ms"
    return f"  {business or 'no business'}: {counted}; tokens {tokens}; first token p50/p99 {first}"


def _speed(speed: dict[str, Any]) -> str:
    rate, ttft_s = speed["decode_tokens_per_s"], speed["ttft_s"]
    if ttft_s is None:
        return "no request yet"
    shown_rate = f"{rate:.1f} tokens/s, " if rate else ""
    return f"{shown_rate}{1000 * ttft_s:.0f} ms to the first token (last answer)"


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
