"""From samples to padded batches of token ids. Knows the chat template; knows no model."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase

from deploy.demo.samples import Sample

POOL_SAMPLES: Final = 2048
IGNORED: Final = -100
WIDTHS: Final = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Lengths that rows are padded to; each divides the tokens of a batch. Longer rows are cut."""

Batch = tuple[torch.Tensor, torch.Tensor]
_ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a conversation, and for each whether it is learnt as a target."""

    ids: list[int]
    is_target: list[bool]


def encode(sample: Sample, tokenizer: PreTrainedTokenizerBase, prompt_share: float, rng: random.Random) -> Encoded:
    """Tokenize a conversation. Every answer token is a target, and a random share of the others for the language."""
    turns = [*(message.as_dict() for message in sample.messages), {"role": "assistant", "content": sample.answer}]
    text = tokenizer.apply_chat_template(turns, tools=list(sample.tools) or None, tokenize=False)
    assert isinstance(text, str)
    ids: list[int] = []
    is_target: list[bool] = []
    for index, part in enumerate(_ANSWER.split(text)):
        part_ids = tokenizer.encode(part, add_special_tokens=False)
        ids += part_ids
        is_target += [index % 2 == 1 or rng.random() < prompt_share for _ in part_ids]
    return Encoded(ids, is_target)


def padded(rows: list[Encoded], width: int, pad_id: int) -> Batch:
    """Return input ids and targets, [num_rows, width]; targets are shifted: what comes next, or IGNORED."""
    ids = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        length = min(len(row.ids), width)
        ids[index, :length] = torch.tensor(row.ids[:length])
        following = [token if wanted else IGNORED for token, wanted in zip(row.ids[1:], row.is_target[1:], strict=True)]
        targets[index, : length - 1] = torch.tensor(following[: length - 1])
    return ids, targets


def batches(
    samples: Iterator[Sample], tokenizer: PreTrainedTokenizerBase, num_tokens: int, prompt_share: float, seed: int
) -> Iterator[Batch]:
    """Yield full batches for ever: rows of like length, padded to one of few widths.

    Every batch has the same number of tokens, so that the matrix products always have the same shape: the kernels are
    compiled once. Rows that fill no batch wait for the next pool.
    """
    rng = random.Random(seed)  # noqa: S311 - data, not secrets
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    waiting: dict[int, list[Encoded]] = {width: [] for width in WIDTHS}
    while True:
        for sample in islice(samples, POOL_SAMPLES):
            row = encode(sample, tokenizer, prompt_share, rng)
            waiting[next((width for width in WIDTHS if len(row.ids) <= width), WIDTHS[-1])].append(row)
        full = [
            padded(rows, width, pad_id) for width in WIDTHS for rows in _take_full(waiting[width], num_tokens // width)
        ]
        rng.shuffle(full)
        yield from full


def _take_full(rows: list[Encoded], num_rows: int) -> Iterator[list[Encoded]]:
    """Remove and yield as many whole batches as there are."""
    while len(rows) >= num_rows:
        yield rows[:num_rows]
        del rows[:num_rows]
