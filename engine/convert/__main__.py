"""The command line for people: `python -m engine.convert base|adapter|grow|grow-adapter SRC OUT`.

Exit codes: 0 converted, 1 the source cannot be converted (the message says what to mend), 2 bad arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from engine.convert.adapter import convert_adapter
from engine.convert.base import convert_base
from engine.convert.errors import ConversionError
from engine.convert.grow import SHAPES, grow_checkpoint
from engine.convert.grow_adapter import grow_adapter
from engine.errors import InvalidInputError

_EXAMPLES = """examples:
  python -m engine.convert base ./qwen3-0.6b ./bundles/base
  python -m engine.convert adapter ./smart-home-lora ./bundles/smart-home --base ./bundles/base
  python -m engine.convert grow ./small ./small-as-4b --shape 4b
  python -m engine.convert grow-adapter ./small-lora ./lora-as-4b --shape 4b --base ./small
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one source and print the release digest, or the directory of what was grown; returns the exit code."""
    options = _parser().parse_args(arguments)
    show = _ProgressLine(sys.stderr)
    try:
        result = _convert(options, show)
    except (InvalidInputError, FileExistsError) as error:
        show.end()
        code = getattr(error, "code", "exists")
        sys.stderr.write(f"error [{code}]: {error}\n")
        if isinstance(error, ConversionError):
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    show.end()
    sys.stdout.write(f"{result}\n")
    return 0


def _convert(options: argparse.Namespace, show: _ProgressLine) -> str:
    source, out = options.source, options.out
    if options.kind == "base":
        return convert_base(source, out, weights=options.weights, on_progress=show)
    if options.kind == "adapter":
        return convert_adapter(source, options.base, out, on_progress=show)
    shape = SHAPES[options.shape]
    if options.kind == "grow":
        grow_checkpoint(source, out, shape, seed=options.seed, on_progress=show)
    else:
        grow_adapter(source, options.base, out, shape, seed=options.seed, on_progress=show)
    return str(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.convert",
        description="Convert a Hugging Face checkpoint or a PEFT adapter to a bundle and print the release digest; "
        "or grow one: the same answers at the cost of a larger model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="base|adapter|grow|grow-adapter")
    base = kinds.add_parser("base", help="a checkpoint directory: config.json, *.safetensors, tokenizer.json")
    base.add_argument(
        "--weights", choices=["int4", "float32"], default="int4", help="int4 (default), or float32 for comparisons"
    )
    adapter = kinds.add_parser("adapter", help="a PEFT directory: adapter_config.json, adapter_model.safetensors")
    adapter.add_argument(
        "--base", type=Path, required=True, metavar="BUNDLE", help="the converted base that it was trained on"
    )
    grow = kinds.add_parser("grow", help="a small checkpoint directory, to a large one: for measurements")
    grow_lora = kinds.add_parser("grow-adapter", help="a PEFT directory, to one for the grown checkpoint")
    grow_lora.add_argument(
        "--base", type=Path, required=True, metavar="CHECKPOINT", help="the small checkpoint that it was trained on"
    )
    for growing in (grow, grow_lora):
        growing.add_argument("--shape", choices=SHAPES, required=True, help="the sizes to grow to")
        growing.add_argument("--seed", type=int, default=0, help="of the weights of the layers that are added")
    for parser_of_kind in (base, adapter, grow, grow_lora):
        parser_of_kind.add_argument("source", type=Path, metavar="SRC", help="the directory to convert")
        parser_of_kind.add_argument("out", type=Path, metavar="OUT", help="the directory to make; must not exist")
    return parser


class _ProgressLine:
    """One line that is written over on a terminal; one line per step elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step = ""

    def __call__(self, step: str, fraction: float) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{fraction:4.0%}  {step}")
        elif step != self._step:
            self._stream.write(f"{fraction:4.0%}  {step}\n")
        self._step = step
        self._stream.flush()

    def end(self) -> None:
        if self._step and self._stream.isatty():
            self._stream.write("\n")


if __name__ == "__main__":
    sys.exit(main())
