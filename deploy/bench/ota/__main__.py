"""`./dev bench ota`: what updates cost on the wire, and what a bad network does to them.

A table for people; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from deploy.bench.ota.faults import measure_faults, measure_kill
from deploy.bench.ota.many import measure_many
from deploy.bench.ota.proxy import Proxy
from deploy.bench.ota.releases import Bundle, changed, make_bundle, tensor_sizes
from deploy.bench.ota.server import Server, running_server
from deploy.bench.ota.speed import measure_delta, measure_packing, measure_speed
from deploy.bench.surroundings import machine, say
from engine.bench.arguments import count, one_of

_ADAPTER_SIZES: Final = {"a": 1 << 20, "b": 1 << 20}
"""As large as an adapter."""
PARTS: Final = ("speed", "delta", "packing", "faults", "kill", "many")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    logging.disable(logging.INFO)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report: dict[str, Any] = {"benchmark": "ota", "machine": machine(), "size_mib": options.size_mib}
    with tempfile.TemporaryDirectory(prefix="socle-bench-", dir=options.directory) as temporary:
        directory = Path(temporary)
        with running_server(directory / "server") as server:
            proxy = Proxy(server.stack.port)
            for part in options.parts:
                say(f"measuring: {part}")
                report[part] = _measure(part, server, proxy, directory / part, options)
                _PRINT[part](report[part])
            proxy.close()
    print(json.dumps(report))


def _measure(
    part: str, server: Server, proxy: Proxy, directory: Path, options: argparse.Namespace
) -> dict[str, Any] | list[dict[str, Any]]:
    size_bytes = options.size_mib << 20
    rng = random.Random(options.seed)
    (device,) = asyncio.run(server.enrol(1))
    match part:
        case "many":
            bundle = make_bundle(directory / "small", _ADAPTER_SIZES, dict.fromkeys(_ADAPTER_SIZES, options.seed))
            (ref,) = server.publish("small", [bundle])
            return asyncio.run(measure_many(server, bundle, ref, options.agents))
        case "packing":
            bundle = _bundle(directory / "text", 1 << 20, rng, text=json.dumps({str(n): n for n in range(200_000)}))
            server.want(server.publish("text", [bundle])[0], bundle.digest, device)
            return asyncio.run(measure_packing(proxy, device, bundle))
        case "delta":
            sizes = tensor_sizes(size_bytes)
            seeds = {name: rng.randrange(1 << 30) for name in sizes}
            old = make_bundle(directory / "old", sizes, seeds)
            new = make_bundle(directory / "new", sizes, changed(sizes, seeds, 0.05, rng))
            return measure_delta(server, proxy, device, (old, new))
    bundle = _bundle(directory / "base", size_bytes, rng)
    server.want(server.publish(part, [bundle])[0], bundle.digest, device)
    match part:
        case "speed":
            return measure_speed(server, device, bundle, options.rounds)
        case "faults":
            return asyncio.run(measure_faults(proxy, device, bundle))
        case _:
            return measure_kill(proxy, device, bundle)


def _bundle(directory: Path, size_bytes: int, rng: random.Random, text: str = "{}") -> Bundle:
    sizes = tensor_sizes(size_bytes)
    return make_bundle(directory, sizes, {name: rng.randrange(1 << 30) for name in sizes}, text)


def _print_speed(report: dict[str, Any]) -> None:
    ours, curl = report["ours_mib_per_s"], report["curl_mib_per_s"]
    print(
        f"\n{report['size_mib']:.0f} MiB from the same server, in turns: "
        f"{_spread(ours)} MiB/s with every byte verified, curl {_spread(curl)} MiB/s ({100 * report['ratio']:.0f} %); "
        f"the download took at most {max(report['memory_mib']):.1f} MiB of memory"
    )


def _print_delta(report: dict[str, Any]) -> None:
    print(
        f"\nnew base, {100 * report['changed_share']:.1f} % of its bytes in changed tensors: "
        f"{report['wire_bytes']} bytes on the wire, {100 * report['wire_share']:.2f} % of the file"
    )


def _print_packing(report: dict[str, Any]) -> None:
    print(f"\na release with a vocabulary: {report['wire_bytes']} of {report['file_bytes']} bytes on the wire")


def _print_faults(report: list[dict[str, Any]]) -> None:
    print(f"\n{'fault':38} {'outcome':22} {'requests':>8} {'extra bytes':>12} {'of a chunk':>10} {'s':>6}")
    for row in report:
        print(
            f"{row['fault']:38} {row['outcome']:22} {row['num_requests']:>8} {row['extra_bytes']:>12} "
            f"{row['extra_chunks']:>10.2f} {row['seconds']:>6.1f}"
        )


def _print_kill(report: dict[str, Any]) -> None:
    print(f"\nkilled in mid-download, started again: {report['extra_bytes']} bytes came twice")


def _print_many(report: dict[str, Any]) -> None:
    print(
        f"\n{report['num_agents']} agents at once, {report['file_bytes']} bytes each: "
        f"all in {report['seconds']:.1f} s, {report['mib_per_s']:.0f} MiB/s, {report['num_failed']} failed; "
        f"the database was {'written to' if report['is_database_written'] else 'not written to'}"
    )


_PRINT: Final[dict[str, Callable[[Any], None]]] = {
    "speed": _print_speed,
    "delta": _print_delta,
    "packing": _print_packing,
    "faults": _print_faults,
    "kill": _print_kill,
    "many": _print_many,
}


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.0f} [{ordered[0]:.0f}, {ordered[-1]:.0f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev bench ota", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--parts", type=one_of(PARTS), default=",".join(PARTS), help="what to measure")
    add("--size-mib", type=count, default=128, help="about how large the base is")
    add("--rounds", type=count, default=5, help="speed: downloads of each, in turns with curl")
    add("--agents", type=count, default=200, help="many: devices that download at once")
    add("--seed", type=int, default=1, help="another one makes other weights and changes other tensors")
    add("--directory", type=Path, default=None, help="where bundles and the server's data lie meanwhile")
    return parser


if __name__ == "__main__":
    main()
