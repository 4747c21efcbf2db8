import json
import math
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deploy.demo import data

MODELS = Path(data.__file__).parent / "models"
BASE = MODELS / "base"
ADAPTERS = {"home-1.0.0": "home", "home-2.0.0": "home", "car-1.0.0": "car", "summary-1.0.0": "summary"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(BASE / "tokenizer.json"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def tensors(path):
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: spec["shape"] for name, spec in header.items() if name != "__metadata__"}


def test_special_tokens_have_their_places(tokenizer):
    ids = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert ids == [0, 1, 2]
    assert tokenizer.decode(tokenizer.encode("<tool_call>\n{}\n</tool_call>").ids) == "<tool_call>\n{}\n</tool_call>"


@pytest.mark.parametrize(
    "text", ["把客厅的灯打开😀", "Turn it off, naïve café!", "  two  spaces\n\n\ttab", "龘靐齉", '{"a": [1, 2.50]}']
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("task", data.TASKS)
def test_samples_come_back(tokenizer, task):
    for sample in islice(data.stream(task, "phrasing", 5), 100):
        text = sample.messages[-1].content + sample.answer
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(("lang", "bound"), [("zh", 0.72), ("en", 0.32)])
def test_tokens_per_character(tokenizer, lang, bound):
    texts = [
        s.messages[-1].content
        for task in data.TASKS
        for s in islice(data.stream(task, "phrasing", 5), 300)
        if s.lang == lang
    ]
    num_tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert num_tokens / sum(map(len, texts)) < bound


def test_common_chinese_outside_the_demo_is_a_token_per_character(tokenizer):
    assert len(tokenizer.encode("论语记录孔子及其弟子的言行").ids) <= 13


def test_sizes():
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 25e6
    for name in ADAPTERS:
        assert sum(path.stat().st_size for path in (MODELS / "adapters" / name).iterdir()) <= 2e6


def test_base_is_the_documented_architecture(tokenizer):
    config = read(BASE / "config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]) == (128, 4, 2)
    assert config["tie_word_embeddings"]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert all(config[key] % 32 == 0 for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = tensors(BASE / "model.safetensors")
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]
    assert 7e6 < sum(math.prod(shape) for shape in shapes.values()) < 9e6


@pytest.mark.parametrize(("name", "business"), ADAPTERS.items())
def test_adapter_directory(name, business):
    folder = MODELS / "adapters" / name
    config, socle = read(folder / "adapter_config.json"), read(folder / "socle.json")
    assert config["peft_type"] == "LORA"
    assert 8 <= config["r"] <= 16
    assert len(tensors(folder / "adapter_model.safetensors")) == 6 * 7 * 2
    assert socle["business"]["name"] == business
    assert all(prompt["messages"][-1]["role"] == "user" for prompt in socle["golden_prompts"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_bring_golden_prompts(name):
    assert 3 <= len(read(MODELS / "adapters" / name / "socle.json")["golden_prompts"]) <= 5


def test_no_path_of_a_machine_is_published():
    for path in MODELS.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/tmp/" not in text
        assert "/work/" not in text


def test_the_template_writes_chatml():
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment().from_string((BASE / "chat_template.jinja").read_text(encoding="utf-8"))
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = template.render(messages=turns, add_generation_prompt=True)
    assert text == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    called = template.render(messages=[turns[1]], tools=[{"type": "function", "function": {"name": "f"}}])
    assert called.startswith("<|im_start|>system\n# Tools")
    assert '"name": "f"' in called
