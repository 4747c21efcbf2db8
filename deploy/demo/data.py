"""The demo's data: every task as an endless seeded stream of samples. `python -m deploy.demo.data --help` prints some.

Nothing is stored: (task, split, seed) is the data set. See `samples` for what is held out.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, get_args

from deploy.demo import drills, talk
from deploy.demo.car import CAR
from deploy.demo.commands import ack_sample, call_sample
from deploy.demo.home import HOME
from deploy.demo.notices import summary_sample
from deploy.demo.phrasing import LANGS, Lang, seeded
from deploy.demo.samples import Message, Sample, Split

Maker = Callable[[Lang, Split, random.Random], Sample]
Mix = tuple[tuple[Callable[[Lang, random.Random], Sample], float], ...]

TASKS: Final[dict[str, Maker]] = {
    "home": lambda lang, split, rng: call_sample(HOME, "home", lang, split, rng),
    "home-2": lambda lang, split, rng: call_sample(HOME, "home-2", lang, split, rng),
    "car": lambda lang, split, rng: call_sample(CAR, "car", lang, split, rng),
    "summary": summary_sample,
}
"""What the adapters learn."""

BASE_MIX: Final[Mix] = (
    (lambda lang, rng: ack_sample(HOME, lang, rng), 20),
    (lambda lang, rng: ack_sample(CAR, lang, rng), 18),
    (drills.notice_question, 14),
    (drills.repeat, 9),
    (drills.translate, 9),
    (drills.extract, 6),
    (drills.arithmetic, 4),
    (drills.tool_use, 5),
    (talk.small_talk, 9),
    (talk.fact, 2),
    (talk.story, 4),
)
"""What the base learns, and in which proportion: everything but the answer formats of `TASKS`."""

FINISH_MIX: Final[Mix] = (*BASE_MIX, (drills.identifiers, 30), (drills.bullets, 10), (drills.repeat, 6))
"""The base's last lessons: names as programs write them, and more of what is hard to copy."""

_SECOND_TURN_SHARE: Final = 0.2


def stream(task: str, split: Split, seed: int) -> Iterator[Sample]:
    """Yield samples of an adapter's task for ever, half of them in each language."""
    rng = seeded(task, split, seed)
    make = TASKS[task]
    while True:
        yield make(rng.choice(LANGS), split, rng)


def base_stream(seed: int, mix: Mix = BASE_MIX) -> Iterator[Sample]:
    """Yield the base's conversations for ever; some have several turns on unrelated matters."""
    rng = seeded("base", seed)
    makers, weights = zip(*mix, strict=True)
    while True:
        lang = rng.choice(LANGS)
        sample: Sample = rng.choices(makers, weights)[0](lang, rng)
        while rng.random() < _SECOND_TURN_SHARE:
            following: Sample = rng.choices(makers, weights)[0](lang, rng)
            if following.tools or following.messages[0].role == "system":
                break
            sample = _continued(sample, following)
        yield sample


def _continued(sample: Sample, following: Sample) -> Sample:
    messages = (*sample.messages, Message("assistant", sample.answer), *following.messages)
    return Sample(sample.task, sample.lang, f"{sample.key}|{following.key}", messages, following.answer, sample.tools)


def held_out(task: str, split: Split, count: int, seed: int = 0) -> list[Sample]:
    """Return `count` distinct samples of a split, as the evaluation and the product demo use them."""
    chosen: dict[tuple[Message, ...], Sample] = {}
    for sample in islice(stream(task, split, seed), 50 * count):
        chosen.setdefault(sample.messages, sample)
        if len(chosen) == count:
            break
    return list(chosen.values())


def main(argv: list[str] | None = None) -> int:
    """Print samples as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=[*TASKS, "base"], default="home")
    parser.add_argument("--split", choices=get_args(Split), default="test")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    samples = (
        islice(base_stream(args.seed), args.count)
        if args.task == "base"
        else held_out(args.task, args.split, args.count, args.seed)
    )
    for sample in samples:
        sys.stdout.write(json.dumps(sample.as_dict(), ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
