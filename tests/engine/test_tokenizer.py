from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.artifact import TokenizerInfo
from engine.chat_template import ChatTemplate
from engine.errors import BundleError, InvalidInputError, UnsupportedInputError
from engine.tokenizer import TextStream, Tokenizer
from tests.engine.golden_cases import GOLDEN_CASES, golden_chats

CHECKPOINT = next(case.checkpoint for case in GOLDEN_CASES if case.name == "qwen3")
INFO = TokenizerInfo("0" * 64, "1" * 64, eos_token_ids=(2, 0))
TOKENIZER = Tokenizer(CHECKPOINT, INFO)
CHATS = golden_chats()
START, END, TOOL_CALL, THINK = 1, 2, 316, 318
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]


def rewritten(folder: Path, *, template: str | None = None, **changes) -> Tokenizer:
    """The golden tokenizer with another template or other fields in tokenizer.json."""
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINT / name, folder / name)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**document, **changes}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Tokenizer(folder, INFO)


@pytest.mark.parametrize("chat", CHATS["chats"], ids=lambda chat: chat["messages"][-1]["content"][:20])
def test_chats_give_the_tokens_of_transformers(chat) -> None:
    options = {"tools": chat["tools"], "add_generation_prompt": chat["add_generation_prompt"]}
    assert TOKENIZER.render_chat(chat["messages"], **options) == chat["token_ids"]


@pytest.mark.parametrize("case", CHATS["texts"], ids=lambda case: case["text"][:20])
def test_texts_give_the_tokens_of_transformers(case) -> None:
    assert TOKENIZER.encode(case["text"]) == case["token_ids"]


@pytest.mark.parametrize("spelling", CONTROL)
def test_plain_text_spells_no_control_token(spelling) -> None:
    token_ids = TOKENIZER.encode(f"a{spelling}b")
    assert not set(token_ids) & {0, 1, 2, 316, 317, 318, 319}
    assert TOKENIZER.decode(token_ids) == f"a{spelling}b"


@pytest.mark.parametrize("spelling", CONTROL)
@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_messages_cannot_inject_control_tokens(role, spelling) -> None:
    benign = TOKENIZER.render_chat([{"role": role, "content": "ab"}])
    hostile = TOKENIZER.render_chat([{"role": role, "content": f"a{spelling}b"}])
    assert [t for t in hostile if t < 3 or t > 315] == [t for t in benign if t < 3 or t > 315]
    assert f"a{spelling}b" in TOKENIZER.decode(hostile)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<|im_", "end|>"),
        ("<", "|im_end|>"),
        ("a<|im_end|", ">b"),
        ("<thi", "nk>"),
        ("<|im_end", "|>"),
        ("<<", "|im_end|>"),
    ],
)
def test_parts_that_a_template_joins_cannot_inject_either(tmp_path, first, second) -> None:
    joining = rewritten(
        tmp_path,
        template="<|im_start|>{% for p in messages[0].content %}{{ p.text }}{% endfor %}<think>",
    )
    parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    token_ids = joining.render_chat([{"role": "user", "content": parts}])
    assert [t for t in token_ids if t < 3 or t > 315] == [START, THINK]
    assert joining.decode(token_ids) == f"{first}{second}<think>"


def test_overlapping_and_single_character_control_tokens_are_broken(tmp_path) -> None:
    document = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    added = document["added_tokens"] + [
        {**document["added_tokens"][0], "id": 320 + index, "content": text}
        for index, text in enumerate(["<<X>>", ">>Y", "→"])
    ]
    tokenizer = rewritten(tmp_path, added_tokens=added)
    for content in ("<<X>>Y", "a→b", "<<", "<<X>"):
        token_ids = tokenizer.render_chat([{"role": "user", "content": content}])
        assert max(token_ids) < 320
        assert content in tokenizer.decode(token_ids)


def test_tools_cannot_inject_control_tokens() -> None:
    tools = [{"name": "x<|im_end|>", "<|im_start|>": ["<|im_end|>"]}]
    token_ids = TOKENIZER.render_chat([{"role": "user", "content": "hi"}], tools=tools)
    assert token_ids.count(END) == 2
    assert token_ids.count(START) == 3


def test_only_assistant_turns_may_hold_markup_that_templates_look_for() -> None:
    turn = {"role": "assistant", "content": "<tool_call>{}</tool_call><|im_end|>"}
    token_ids = TOKENIZER.render_chat([turn], add_generation_prompt=False)
    assert token_ids.count(TOOL_CALL) == 1
    assert token_ids.count(END) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "system", "tool"]), st.lists(st.sampled_from([*CONTROL, "<", "|>", " a", "好"]))
        )
    )
)
def test_number_of_control_tokens_is_the_templates_own(turns) -> None:
    messages = [{"role": role, "content": "".join(pieces)} for role, pieces in turns]
    token_ids = TOKENIZER.render_chat(messages)
    assert token_ids.count(START) == len(turns) + 1
    assert token_ids.count(END) == len(turns)
    assert len([t for t in token_ids if t > 315]) == 2  # the generation prompt's empty thought
    assert 0 not in token_ids


def test_halves_of_utf16_pairs_and_sentinels_are_mended() -> None:
    assert TOKENIZER.encode("a\ud83db") == TOKENIZER.encode("a\ufffdb")
    assert TOKENIZER.encode("\ud83d\ude00") == TOKENIZER.encode("😀")
    assert TOKENIZER.encode("a\ufdd0b") == TOKENIZER.encode("ab")


def test_texts_are_put_between_the_tokenizers_own_tokens(tmp_path) -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    tokenizer = rewritten(tmp_path, post_processor=processor)
    assert tokenizer.encode("hi") == [0, *TOKENIZER.encode("hi")]
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages) == TOKENIZER.render_chat(messages)


def test_control_token_that_the_vocabulary_knows_as_a_word_is_refused(tmp_path) -> None:
    words = {
        "model": {
            "type": "WordLevel",
            "vocab": {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "hi": 3},
            "unk_token": "<|endoftext|>",
        },
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,
    }
    tokenizer = rewritten(tmp_path, **words)
    assert tokenizer.encode("hi there") == [3, 0]
    with pytest.raises(InvalidInputError, match="im_end"):
        tokenizer.encode("hi <|im_end|> there")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\ufffd"))


def chunks_of(text: str, cuts: list[int]) -> list[bytes]:
    """The text's bytes, cut anywhere."""
    data = text.encode()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def decode_bytes(chunks: list[bytes]) -> str:
    """As byte-level decoders do: one U+FFFD for an incomplete character."""
    return b"".join(chunks).decode(errors="replace")


def decode_fallback(chunks: list[bytes]) -> str:
    """As decoders with byte fallback do: a run of single bytes is text as a whole, or one U+FFFD for each byte."""
    text = ""
    for is_byte, run in itertools.groupby(chunks, lambda chunk: len(chunk) == 1):
        data = b"".join(run)
        try:
            text += data.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(data) if is_byte else data.decode(errors="replace")
    return text


@given(TEXTS, st.lists(st.integers(0, 10_000)))
def test_stream_sends_each_character_with_its_last_byte(text, cuts) -> None:
    stream, sent, seen = TextStream(decode_bytes), "", b""
    for chunk in chunks_of(text, cuts):
        sent += stream.push(chunk)
        seen += chunk
        assert sent == seen.decode(errors="ignore")
    assert stream.flush() == ""


@given(st.lists(st.tuples(TEXTS, st.booleans())))
def test_stream_waits_for_runs_of_single_bytes(pieces) -> None:
    stream, sent = TextStream(decode_fallback), ""
    for text, is_whole in pieces:
        data = text.encode()
        for chunk in [data] if is_whole else [data[i : i + 1] for i in range(len(data))]:
            sent += stream.push(chunk)
    assert sent + stream.flush() == "".join(text for text, _ in pieces)
    assert stream.flush() == ""


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=200))
@example([b"\x80"] * 100)
def test_stream_does_not_hold_back_what_will_never_be_a_character(chunks) -> None:
    stream, sent = TextStream(decode_bytes), ""
    for count, chunk in enumerate(chunks, 1):
        sent += stream.push(chunk)
        assert len(decode_bytes(chunks[:count])) - len(sent) <= 3 * 4
    assert sent + stream.flush() == decode_bytes(chunks)


@given(TEXTS)
def test_stream_of_the_tokenizer_gives_its_text(text) -> None:
    stream = TOKENIZER.stream()
    assert "".join(map(stream.push, TOKENIZER.encode(text))) == text
    assert stream.flush() == ""


def test_cost_of_a_push_does_not_grow() -> None:
    lengths = []

    def decode(token_ids) -> str:
        lengths.append(len(token_ids))
        return "\ufffd" * len(token_ids)

    stream = TextStream(decode)
    for token_id in range(1000):
        stream.push(token_id)
    assert max(lengths) < 200


def test_stream_flushes_an_incomplete_character() -> None:
    stream = TOKENIZER.stream()
    token_ids = TOKENIZER.encode("ok 🌧")[:-1]
    assert "".join(map(stream.push, token_ids)) == "ok "
    assert stream.flush() == "\ufffd"


def test_special_tokens_are_no_text() -> None:
    stream = TOKENIZER.stream()
    assert [stream.push(token) for token in (START, *TOKENIZER.encode("a"), END)] == ["", "a", ""]
    assert TOKENIZER.eos_token_ids == {2, 0}


def render(source: str, messages=(), names=None) -> str:
    return ChatTemplate(source, names or {}).render(list(messages), None, add_generation_prompt=False)


def test_template_has_what_hugging_face_gives_it() -> None:
    assert render("{{ bos_token }}|{{ eos_token }}", names={"bos_token": "<s>"}) == "<s>|"
    assert render("{{ {'b': '<é>'} | tojson }}") == '{"b": "<é>"}'
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{% generation %}x{% endgeneration %}") == "x"
    assert render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
        "{{ messages.__class__.__subclasses__() }}",
        "{{ messages[0].content.x.y }}",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
    ],
)
def test_template_that_fails_is_bad_input(source) -> None:
    with pytest.raises(InvalidInputError, match="refuses these messages"):
        render(source, [{"role": "user", "content": "hi"}])


def test_base_without_template_says_what_to_do(tmp_path) -> None:
    with pytest.raises(UnsupportedInputError, match="v1/completions"):
        rewritten(tmp_path, template="").render_chat([{"role": "user", "content": "hi"}])


def test_message_values_are_plain_json() -> None:
    with pytest.raises(InvalidInputError, match="JSON values only"):
        TOKENIZER.render_chat([{"role": "user", "content": object()}])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"model": {"type": "BPE"}}', b"\xff"])
def test_damaged_tokenizer_is_a_bad_bundle(tmp_path, content) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "chat_template.jinja").write_text("")
    with pytest.raises(BundleError):
        Tokenizer(tmp_path, INFO)
