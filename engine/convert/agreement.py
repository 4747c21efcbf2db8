"""How well the quantised model agrees with the original: both read the same text, and their predictions are compared.

The text is the engine's own, so no model was trained on it. Layers are read one at a time: models larger than memory in
float32 pass through as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.backends.reference import KvCache, Transformer
from engine.convert.building import Progress
from engine.tokenizer import Tokenizer

F32 = NDArray[np.float32]

MAX_TOKENS = 256
HELD_OUT_TEXT = """\
The ferry was late again, so the two of them sat on the sea wall and shared what was left of the bread. She had meant to
tell him about the letter in the morning, but the morning had gone, and so had the courage. “You are very quiet,” he
said. A gull landed beside them, looked at the crumbs and waited.
会议改到周四下午三点，地点还是二楼的小会议室。请各组提前把上个月的数据整理好，尤其是返修率和客户等待时间这两项。
如果有人不能到场，可以在线参加，但请至少提前一天告诉小周，她要准备设备。
Please turn on the lamp in the study, set it to 40 percent, and remind me at 18:45 to call the garage about the tyres.
把空调调到二十四度，风速小一点，再放一首安静的歌。
To dry apples, core them, cut them into rings about 5 mm thick, and hang them on a string above a stove for two days.
晾干以后装进密封的罐子里，放在阴凉的地方，可以保存到第二年春天。
"""


def measure_agreement(
    architecture: Architecture,
    tokenizer: Tokenizer,
    original: Callable[[str], F32],
    converted: Callable[[str], F32],
    on_progress: Progress,
) -> Mapping[str, float]:
    """Share of equal arg-max predictions and mean KL divergence (nats) from the original, over `num_tokens` positions.

    Rounded, so that the last bits of a matrix product do not make another digest.
    """
    token_ids = _held_out_tokens(tokenizer, architecture)
    on_progress("measuring agreement: original", 0.80)
    expected = _logits(architecture, original, token_ids)  # [num_tokens, vocab]
    on_progress("measuring agreement: converted", 0.90)
    actual = _logits(architecture, converted, token_ids)  # [num_tokens, vocab]
    top1 = np.mean(expected.argmax(axis=-1) == actual.argmax(axis=-1))
    return {
        "num_tokens": float(len(token_ids)),
        "top1": round(float(top1), 3),
        "mean_kl": float(f"{_mean_kl(expected, actual):.2g}"),
    }


def _held_out_tokens(tokenizer: Tokenizer, architecture: Architecture) -> NDArray[np.int32]:
    token_ids = tokenizer.encode(HELD_OUT_TEXT)
    return np.array(token_ids[: min(MAX_TOKENS, architecture.max_position_embeddings)], np.int32)


def _logits(architecture: Architecture, tensor: Callable[[str], F32], token_ids: NDArray[np.int32]) -> F32:
    transformer = Transformer(architecture, tensor, multiply=_multiply_whole)
    states = transformer.hidden_states(token_ids, KvCache(architecture, len(token_ids)))
    return transformer.logits(states)


def _multiply_whole(x: F32, weight: F32) -> F32:
    """All rows in one product: nothing here depends on the last bits, and it is many times faster."""
    return x @ weight.T  # [num_rows, out]


def _mean_kl(expected: F32, actual: F32) -> float:
    """Row by row: in float64, all rows of a large vocabulary at once would take gigabytes."""
    return float(
        np.mean([_kl(p.astype(np.float64), q.astype(np.float64)) for p, q in zip(expected, actual, strict=True)])
    )


def _kl(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    difference = _log_softmax(expected) - _log_softmax(actual)  # [vocab]
    return float(np.sum(np.exp(_log_softmax(expected)) * difference))


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of one row [vocab]."""
    shifted: NDArray[np.float64] = x - x.max()  # [vocab]
    normal: NDArray[np.float64] = shifted - np.log(np.sum(np.exp(shifted)))  # [vocab]
    return normal
