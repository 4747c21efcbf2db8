"""`python -m engine`: try a bundle in a terminal. Arguments and printing only; the engine does the work."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.metrics import Usage
from engine.runtime import Engine, Prompt
from engine.sampling import SamplingParams
from engine.sequence import Output


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        return _generate(options)
    except EngineError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine", description="Run a base bundle with or without an adapter."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="answer one prompt, streaming")
    generate.add_argument("bundle", type=Path, help="directory of the base bundle")
    generate.add_argument("--adapter", type=Path, help="directory of an adapter bundle")
    generate.add_argument("--prompt", required=True, help="what the user says, or with --raw the text to go on from")
    generate.add_argument("--system", help="a system message before it")
    generate.add_argument("--raw", action="store_true", help="no chat template")
    generate.add_argument(
        "--config", type=json.loads, default={}, help='engine configuration, {"backend": "onnx", ...}'
    )
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--top-k", type=int, default=0)
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--min-p", type=float, default=0.0)
    generate.add_argument("--repetition-penalty", type=float, default=1.0)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT")
    generate.add_argument("--max-tokens", type=int, default=256)
    return parser


def _generate(options: argparse.Namespace) -> int:
    started_at = time.perf_counter()
    engine = Engine.open(options.bundle, EngineConfig.from_mapping(options.config))
    adapter = engine.load_adapter(options.adapter) if options.adapter else None
    open_s = time.perf_counter() - started_at
    usage = _stream(engine.generate(_prompt(options), adapter=adapter, sampling=_sampling(options)))
    if usage is not None:
        sys.stderr.write(f"{_summary(engine, usage)}, open {open_s:.2f} s\n")
    engine.close()
    return 0


def _prompt(options: argparse.Namespace) -> Prompt:
    if options.raw:
        return str(options.prompt)
    system = [{"role": "system", "content": options.system}] if options.system else []
    return [*system, {"role": "user", "content": options.prompt}]


def _sampling(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=tuple(options.stop),
        max_tokens=options.max_tokens,
    )


def _stream(outputs: Iterator[Output]) -> Usage | None:
    usage = None
    for output in outputs:
        sys.stdout.write(output.text)
        sys.stdout.flush()
        usage = output.usage or usage
    sys.stdout.write("\n")
    return usage


def _summary(engine: Engine, usage: Usage) -> str:
    stats = engine.stats()
    return (
        f"{stats.backend}: {usage.prompt_tokens} prompt tokens at {stats.total.prefill_tokens_per_s:.0f}/s, "
        f"{usage.completion_tokens} answer tokens, decode at {stats.total.decode_tokens_per_s:.0f}/s, "
        f"first token after {usage.ttft_s * 1000:.0f} ms, PSS {stats.memory.pss_bytes / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
