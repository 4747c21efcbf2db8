"""The tokenizer: byte-level BPE with Qwen's pre-tokenizer, trained on the demo's own text. Needs `tokenizers` alone.

Chinese has no spaces, so plain BPE would fuse a slot value with the words around it ("的灯打开"). The corpus is
therefore cut at the lexicon's words: merges stay inside a word or inside the phrase between two words.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deploy.demo import data, drills, lexicon, notice_wording
from deploy.demo.phrasing import LANGS, seeded
from deploy.demo.samples import Sample

VOCAB_SIZE: Final = 8000
SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_ADDED_TOKENS: Final = ("<tool_call>", "</tool_call>")
CHAT_TEMPLATE: Final = Path(__file__).parent / "chat_template.jinja"

_QWEN_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_BASE_SAMPLES: Final = 25_000
_NUM_TASK_SAMPLES: Final = 2_000
_HANZI_WEIGHT: Final = 200
_MAX_TOKEN_BYTES: Final = 18


def _zh_words() -> list[str]:
    """Return the Chinese slot values, longest first."""
    words = {name for term in drills.TERMS for name in term.zh}
    words |= {
        *lexicon.ZH_PLACE_NAMES,
        *lexicon.ZH_PLACE_KINDS,
        *lexicon.ZH_GIVEN,
        *lexicon.ZH_TITLES,
        *lexicon.ZH_FAMILY,
    }
    words |= {*lexicon.ZH_SONG_ADJ, *lexicon.ZH_SONG_NOUN, *notice_wording.ZH_ITEMS, *notice_wording.ZH_DAYS}
    words |= {*notice_wording.ZH_WEATHER, *notice_wording.ZH_EVENTS, *notice_wording.ZH_STATES, *notice_wording.ZH_FEES}
    return sorted(words, key=lambda word: (-len(word), word))


def _samples() -> Iterator[Sample]:
    yield from islice(data.base_stream(seed=1), _NUM_BASE_SAMPLES)
    for task in ("home", "home-2", "car"):
        yield from islice(data.stream(task, "train", seed=1), _NUM_TASK_SAMPLES)
    rng = seeded("summary", "train", 1)
    for _ in range(_NUM_TASK_SAMPLES):
        yield drills.counted_list(rng.choice(LANGS), rng)


def _texts() -> Iterator[str]:
    for sample in _samples():
        yield from (message.content for message in sample.messages)
        yield sample.answer


def corpus() -> Iterator[str]:
    """Yield the pieces that merges may not cross."""
    boundary = re.compile("(" + "|".join(map(re.escape, _zh_words())) + r"|</?tool_call>)")
    for text in _texts():
        yield from (piece for piece in boundary.split(text) if piece and not piece.endswith("tool_call>"))
    for hanzi in lexicon.COMMON_HANZI:
        yield from [hanzi] * _HANZI_WEIGHT


def build() -> Tokenizer:
    """Train the tokenizer. Deterministic: the corpus is seeded and BPE breaks ties by token id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(PLAIN_ADDED_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    return tokenizer


def save(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
