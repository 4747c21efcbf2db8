"""Measure the committed base and adapters on held-out requests. A table for people; the last line is one JSON document.

Every model is measured twice: with the weights as published, and with the base in simulated 4 bits as devices hold it.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from deploy.demo import quantise
from deploy.demo.data import held_out
from deploy.demo.golden import greedy_answers
from deploy.demo.notices import line_score
from deploy.demo.samples import Sample, Split
from deploy.demo.train import ADAPTERS, PLANS, load_base, load_tokenizer

MEASURED_SPLITS: tuple[Split, ...] = ("test", "phrasing")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. `line_score` is the mean F1 of lines, meant for summaries."""

    model: str
    task: str
    split: str
    weights: str
    num_samples: int
    exact_match: float
    exact_match_zh: float
    exact_match_en: float
    line_score: float


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def figure(model: str, split: str, weights: str, samples: Sequence[Sample], answers: Sequence[str]) -> Figure:
    """Compare answers with the one right answer of each sample."""
    pairs = list(zip(samples, answers, strict=True))
    hits = {lang: [answer == s.answer for s, answer in pairs if s.lang == lang] for lang in ("zh", "en")}
    scores = [line_score(answer, sample.answer) for sample, answer in pairs]
    return Figure(
        model,
        samples[0].task,
        split,
        weights,
        len(samples),
        _share([*hits["zh"], *hits["en"]]),
        _share(hits["zh"]),
        _share(hits["en"]),
        sum(scores) / len(scores),
    )


def measure(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, plan_name: str, count: int, num_misses: int = 0
) -> list[Figure]:
    """Return the figures of a model on a plan's task: each split, each kind of weights."""
    plan, figures = PLANS[plan_name], []
    for weights in ("bf16", "int4"):
        with quantise.rounded_weights(model) if weights == "int4" else contextlib.nullcontext():
            for split in MEASURED_SPLITS:
                samples = held_out(plan.task, split, count)
                answers = greedy_answers(model, tokenizer, samples, plan.max_tokens)
                figures.append(figure(name, split, weights, samples, answers))
                show(figures[-1], samples, answers, num_misses)
    return figures


def show(result: Figure, samples: Sequence[Sample], answers: Sequence[str], num_misses: int) -> None:
    """Print a row of the table as soon as it is known."""
    sys.stdout.write(
        f"{result.model:14} {result.task:8} {result.split:9} {result.weights:5} {result.num_samples:4} "
        f"{result.exact_match:7.1%} {result.exact_match_zh:7.1%} {result.exact_match_en:7.1%} "
        f"{result.line_score:7.1%}\n"
    )
    misses = [(s, a) for s, a in zip(samples, answers, strict=True) if s.answer != a]
    for sample, answer in misses[:num_misses]:
        sys.stdout.write(f"  asked {sample.messages[-1].content!r}\n  right {sample.answer!r}\n  got   {answer!r}\n")
    sys.stdout.flush()


def evaluate(names: Sequence[str], count: int, num_misses: int) -> list[Figure]:
    """Measure the adapters, and the bare base on the tasks of each."""
    tokenizer = load_tokenizer()
    figures: list[Figure] = []
    for name in names:
        figures += measure(
            PeftModel.from_pretrained(load_base(), ADAPTERS / name), tokenizer, name, name, count, num_misses
        )
        figures += measure(load_base(), tokenizer, "base", name, count)
    return figures


def main(argv: list[str] | None = None) -> int:
    """Print the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"adapters, of {', '.join(PLANS)}; all when left out")
    parser.add_argument("--count", type=int, default=200, help="held-out requests per split")
    parser.add_argument("--misses", type=int, default=0, help="wrong answers to print per row")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started_s = time.monotonic()
    sys.stdout.write(
        f"{'model':14} {'task':8} {'split':9} {'base':5} {'n':>4} {'exact':>7} {'zh':>7} {'en':>7} {'lines':>7}\n"
    )
    figures = evaluate(args.names or list(PLANS), args.count, args.misses)
    document = {"figures": [asdict(f) for f in figures], "wall_s": round(time.monotonic() - started_s, 1)}
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
