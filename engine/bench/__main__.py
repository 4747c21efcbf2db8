"""`python -m engine.bench`: our engine against its peers, interleaved in one run.

`python -m engine.bench bundle PATH` measures a bundle of one's own instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from engine.bench import bundle
from engine.bench.arguments import count, counts, one_of, positive
from engine.bench.cases import Setting, settings
from engine.bench.child import Child
from engine.bench.conductor import Plan, Surroundings, run_shape
from engine.bench.contestants import REGISTRY
from engine.bench.machine import describe_machine, measure_capability
from engine.bench.models import ModelFolder, ensure_model, fingerprint
from engine.bench.report import document, table
from engine.bench.results import Participant, ShapeResults
from engine.bench.shapes import SHAPES, quick

ROOT: Final = Path(__file__).resolve().parent.parent.parent
MAX_TOKENS: Final = 4096  # the default context limit of our own engine
_QUICK: Final = {"rows": [1, 8], "context": [64], "prefill": [128], "rounds": 2}
_FULL: Final = {"rows": [1, 2, 4, 8, 16, 32], "context": [256, 2048], "prefill": [128, 512], "rounds": 7}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["bundle"]:
        bundle.main(words[1:])
    else:
        compare(_options(words))


def compare(options: argparse.Namespace) -> None:
    """Run all shapes, and print the tables and the document."""
    planned = settings(contexts=options.context, rows=options.rows, prefills=options.prefill)
    machine = describe_machine()
    shapes = [_run(shape, planned, options) for shape in options.shape]
    report = document(machine, shapes, {name: getattr(options, name) for name in ("rounds", "budget_s", "num_threads")})
    print(table(machine, shapes))
    if options.json:
        options.json.write_text(json.dumps(report) + "\n")
    print(json.dumps(report))


def _run(shape: str, planned: list[Setting], options: argparse.Namespace) -> ShapeResults:
    architecture = quick(SHAPES[shape]) if options.quick else SHAPES[shape]
    name = f"{shape}-{architecture.num_hidden_layers}-layers-{fingerprint(architecture)}"
    folder = ModelFolder(options.cache.resolve() / name)
    results = ShapeResults(shape, architecture, {name: _participant(name) for name in options.only})
    plan = Plan(
        settings=planned,
        folder=str(folder.path),
        rounds=options.rounds,
        budget_s=options.budget_s,
        num_threads=options.num_threads,
        with_memory=options.memory,
    )
    _say(f"{shape}: random weights in {folder.path}")
    ensure_model(folder, architecture)
    world = Surroundings(_starter(folder), lambda: measure_capability(options.num_threads), _say)
    run_shape(plan, results, world)
    return results


def _participant(name: str) -> Participant:
    entry = REGISTRY[name]
    return Participant(name, entry.is_peer, entry.is_native, entry.has_adapter, failure=entry.missing())


def _starter(folder: ModelFolder) -> Callable[[str], Child]:
    def start(name: str) -> Child:
        command = [sys.executable, "-m", "engine.bench.contestants", name]
        return Child(name, command, log=folder.path / "logs" / f"{name}.log", directory=ROOT)

    return start


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(words: Sequence[str]) -> argparse.Namespace:
    """Checked options. What --quick changes can still be given."""
    parser = _parser()
    options = parser.parse_args(words)
    defaults = _QUICK if options.quick else _FULL
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if max(options.context, default=0) + max(options.rows, default=0) > MAX_TOKENS or max(options.prefill) > MAX_TOKENS:
        parser.error(f"context and rows together are limited to {MAX_TOKENS} tokens")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev bench engine", description=__doc__, epilog=_peers_note())
    add = parser.add_argument
    add("--quick", action="store_true", help="few layers, few cases, few rounds: shows that it works, measures nothing")
    add("--shape", type=one_of(SHAPES), help=f"of {', '.join(SHAPES)}", default=["0.5b"])
    add("--only", type=one_of(REGISTRY), default=list(REGISTRY), help=f"of {', '.join(REGISTRY)}")
    add("--rows", type=counts, help="rows of a verification step (1,2,4,8,16,32)")
    add("--context", type=counts, help="tokens that such a step finds in the KV cache (256,2048)")
    add("--prefill", type=counts, help="prompt lengths (128,512)")
    add("--rounds", type=count, help="of which the median is taken (7)")
    add("--budget-s", type=positive, default=0.25, help="least time of a contestant in a round of a case (0.25)")
    add("--num-threads", type=int, default=0, help="0 lets each contestant take what is best for it")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure each one's memory alone, before")
    add("--json", type=Path, help="write the document there, too")
    add("--cache", type=Path, default=ROOT / "var" / "bench", help="where the random models are kept (var/bench)")
    return parser


def _peers_note() -> str:
    return "./dev bench engine --peers installs llama.cpp and OpenVINO beside .venv first, and runs with them."


if __name__ == "__main__":
    main()
