"""Measure the committed base and adapters as devices run them: converted to 4 bits, on the engine. Needs no torch.

A table for people; the last line is one JSON document. `--choose-golden` also writes each adapter's golden prompts:
held-out requests that are answered rightly both with int8 and with float32 products, so that they hold with a margin
on any processor.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from deploy.demo.data import held_out
from deploy.demo.notices import line_score
from deploy.demo.samples import Sample, Split
from engine.artifact import AdapterManifest, read_adapter
from engine.config import EngineConfig
from engine.convert import convert_adapter, convert_base
from engine.runtime import Engine
from engine.sampling import SamplingParams

MODELS: Final = Path(__file__).parent / "models"
TASKS: Final = {"home-1.0.0": "home", "home-2.0.0": "home-2", "car-1.0.0": "car", "summary-1.0.0": "summary"}
MAX_TOKENS: Final = 256
NUM_GOLDEN: Final = 4
INT8_PRODUCTS: Final = 4
FLOAT32_PRODUCTS: Final = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """One adapter, or the bare base on its task: shares of 1, and how many golden prompts hold."""

    model: str
    task: str
    split: Split
    num_samples: int
    exact_match: float
    line_score: float
    golden_prompts: int = 0
    golden_prompts_right: int = 0


class Device:
    """The demo's base and adapters on an engine, as an agent opens them."""

    def __init__(self, folder: Path, accuracy_level: Literal[0, 4] = INT8_PRODUCTS) -> None:
        folder.mkdir(exist_ok=True)
        base = folder / "base"
        convert_base(MODELS / "base", base)
        self._engine = Engine.open(base, EngineConfig(num_threads=1, onnx_accuracy_level=accuracy_level))
        self._digests: dict[str, str] = {}
        self._manifests: dict[str, AdapterManifest] = {}
        for name in TASKS:
            convert_adapter(MODELS / "adapters" / name, base, folder / name)
            self._manifests[name], _ = read_adapter(folder / name)
            self._digests[name] = self._engine.load_adapter(folder / name)

    def answer(self, adapter: str | None, messages: Sequence[dict[str, str]]) -> str:
        """Return the greedy answer; `adapter` None asks the bare base."""
        sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
        digest = self._digests[adapter] if adapter else None
        return "".join(output.text for output in self._engine.generate(messages, adapter=digest, sampling=sampling))

    def measure(self, adapter: str | None, task: str, split: Split, samples: Sequence[Sample]) -> Figure:
        """Compare the answers with the right ones."""
        answers = [self.answer(adapter, [message.as_dict() for message in sample.messages]) for sample in samples]
        pairs = list(zip(samples, answers, strict=True))
        exact = sum(answer == sample.answer for sample, answer in pairs) / len(pairs)
        score = sum(line_score(answer, sample.answer) for sample, answer in pairs) / len(pairs)
        golden = self._manifests[adapter].golden_prompts if adapter else ()
        right = sum(self.answer(adapter, [dict(m) for m in prompt.messages]) == prompt.answer for prompt in golden)
        return Figure(adapter or "base", task, split, len(pairs), exact, score, len(golden), right)


def choose_golden(folder: Path) -> None:
    """Write into each adapter's `socle.json` the first held-out requests that hold with either kind of products."""
    devices = [Device(folder / str(level), level) for level in (INT8_PRODUCTS, FLOAT32_PRODUCTS)]
    for name, task in TASKS.items():
        chosen: list[dict[str, Any]] = []
        for sample in held_out(task, "test", 16 * NUM_GOLDEN, seed=1):
            messages = [message.as_dict() for message in sample.messages]
            if all(device.answer(name, messages) == sample.answer for device in devices):
                chosen.append({"messages": messages, "answer": sample.answer})
            if len(chosen) == NUM_GOLDEN:
                break
        path = MODELS / "adapters" / name / "socle.json"
        document = json.loads(path.read_text(encoding="utf-8")) | {"golden_prompts": chosen}
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="held-out requests per adapter (default 100)")
    parser.add_argument("--split", choices=["test", "phrasing"], default="test")
    parser.add_argument("--choose-golden", action="store_true", help="first choose the golden prompts anew")
    arguments = parser.parse_args(argv)
    figures = []
    sys.stdout.write(f"{'model':14} {'task':8} {'n':>4} {'exact':>7} {'lines':>7}  golden prompts\n")
    with tempfile.TemporaryDirectory(prefix="socle-models-") as folder:
        if arguments.choose_golden:
            choose_golden(Path(folder))
        device = Device(Path(folder) / "measured")
        for name, task in TASKS.items():
            samples = held_out(task, arguments.split, arguments.count)
            for adapter in (name, None):
                figure = device.measure(adapter, task, arguments.split, samples)
                figures.append(figure)
                sys.stdout.write(
                    f"{figure.model:14} {figure.task:8} {figure.num_samples:4} {figure.exact_match:7.1%} "
                    f"{figure.line_score:7.1%}  {figure.golden_prompts_right} of {figure.golden_prompts}\n"
                )
                sys.stdout.flush()
    sys.stdout.write(json.dumps({"figures": [asdict(figure) for figure in figures]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
