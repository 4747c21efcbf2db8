# ruff: noqa: SIM905 - word lists read better as text
"""Exercises that teach the base to find, copy, order and translate, and to call tools that a system message lists.

None of them has the tools or the answer formats of the adapters' tasks.
"""

import json
import random
import string
from collections.abc import Callable, Sequence
from typing import Final

from deploy.demo import car, car_wording, home_wording, lexicon, notice_wording, people
from deploy.demo.commands import Call
from deploy.demo.lexicon import Term
from deploy.demo.notices import Notice, ask_about, draw_notices, listing
from deploy.demo.phrasing import Lang, en_number, say, zh_number
from deploy.demo.samples import Message, Sample

TERMS: Final[tuple[Term, ...]] = (
    *lexicon.ROOMS, *(device.term for device in lexicon.DEVICES), *lexicon.COLORS, *lexicon.MEASURES, *lexicon.SCENES,
    *car.POIS, *car.SEATS, *car.ZONES, *car.GENRES, *car.AVOID, *car.CAR_STATES, *car.SEAT_FUNCTIONS,
)  # fmt: skip
_FIELDS: Final = {
    "zh": ("姓名", "地点", "时间", "物品", "数量", "电话"),
    "en": ("name", "place", "time", "item", "count", "phone"),
}
_TOOL_VERBS: Final = "book add find send create get check cancel order track save list rate share update".split()
_TOOL_NOUNS: Final = (
    "ticket note recipe email alarm meeting weather stock flight taxi photo task book price order game".split()
)
_TOOL_FIELDS: Final = "name place time item count city date person title amount".split()

_FUNCTIONS: Final = (
    *home_wording.WORDINGS,
    *car_wording.WORDINGS,
    *"set_fan_mode volume_set set_cover_position turn_off_after get open close start stop play".split(),
)
_DOMAINS: Final = tuple(
    sorted(
        {device.domain for device in lexicon.DEVICES} | {"sensor", "scene", "state", "timer", "lock", "alarm", "media"}
    )
)
_PARAMETERS: Final = (
    "room device temperature brightness color position volume speed minutes measure scene entity "
    "brightness_pct color_name volume_level fan_mode delay_min destination avoid category radius_km "
    "zone seat function level window percent song artist genre action contact text mode item name place time title"
).split()

_LIST_ASKS: Final = {"zh": ("列表：", "列出来："), "en": ("list:", "bullets:")}


def _value(field: str, lang: Lang, rng: random.Random) -> str | int:
    """Draw the value of a field, whichever language it is named in."""
    zh = lang == "zh"
    if field in ("地点", "place", "city"):
        return people.place(lang, rng)
    if field in ("时间", "time", "date"):
        return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
    if field in ("物品", "item", "title"):
        return rng.choice(notice_wording.ZH_ITEMS if zh else notice_wording.EN_ITEMS)
    if field in ("数量", "count", "amount"):
        return rng.randint(1, 999)
    if field in ("电话", "phone"):
        return "".join(rng.choices(string.digits, k=8))
    return people.person(lang, rng)


def _sample(task: str, lang: Lang, ask: str, answer: str, tools: tuple[dict[str, object], ...] = ()) -> Sample:
    return Sample(task, lang, f"{task}/{ask}", (Message("user", ask),), answer, tools)


def _random_words(lang: Lang, rng: random.Random) -> list[str]:
    """Draw words of any kind, also meaningless ones, so that copying cannot lean on what is likely."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(TERMS).canonical(lang),
        lambda: people.person(lang, rng),
        lambda: people.place(lang, rng),
        lambda: people.song(lang, rng),
        lambda: str(rng.randint(0, 9999)),
        lambda: "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(2, 6))),
        lambda: rng.choice(notice_wording.ZH_ITEMS if lang == "zh" else notice_wording.EN_ITEMS),
        lambda: "".join(rng.choices(lexicon.COMMON_HANZI, k=rng.randint(1, 4))),
    )
    return [rng.choice(makers)() for _ in range(rng.randint(2, 7))]


def repeat(lang: Lang, rng: random.Random) -> Sample:
    """Repeat a list as it is, backwards, without one, or one of it."""
    words = _random_words(lang, rng)
    listed, pick = ("、" if lang == "zh" else ", "), rng.randrange(len(words))
    forms = {
        "[重复|跟我说|照着念|复述]：{all}" if lang == "zh" else "[repeat|say|copy|echo]: {all}": words,
        "[倒过来|反过来]说：{all}" if lang == "zh" else "[reverse|backwards]: {all}": words[::-1],
        "第{n}个是什么：{all}" if lang == "zh" else "what is number {n}: {all}": [words[pick]],
        "去掉{one}：{all}" if lang == "zh" else "remove {one}: {all}": [w for w in words if w != words[pick]] or ["-"],
        "{one}后面是什么：{all}" if lang == "zh" else "what comes after {one}: {all}": [words[(pick + 1) % len(words)]],
        "有几个：{all}" if lang == "zh" else "how many: {all}": [str(len(words))],
    }
    pattern = rng.choice(list(forms) + list(forms)[:1] * 2)
    ask = say(pattern, rng, {"all": listed.join(words), "one": words[pick], "n": pick + 1})
    return _sample("repeat", lang, ask, listed.join(forms[pattern]))


def translate(lang: Lang, rng: random.Random) -> Sample:
    """Translate one to three terms into the other language, into their plain names, or into their ids."""
    terms = rng.sample(TERMS, rng.randint(1, 3))
    other: Lang = "en" if lang == "zh" else "zh"
    listed, joined = ("、" if lang == "zh" else ", "), (", " if lang == "zh" else "、")
    said = listed.join(rng.choice(term.names(lang)) for term in terms)
    if rng.random() < 0.3:
        ask = say(
            "[{x}也叫什么|{x}的标准叫法]" if lang == "zh" else "[another word for {x}|standard name of {x}]",
            rng,
            {"x": said},
        )
        return _sample("translate", lang, ask, listed.join(term.canonical(lang) for term in terms))
    pattern = (
        "[{x}用英语怎么说|翻译成英文：{x}|{x}的英文]"
        if lang == "zh"
        else "[{x} in Chinese|translate into Chinese: {x}|how to say {x} in Chinese?]"
    )
    return _sample(
        "translate", lang, say(pattern, rng, {"x": said}), joined.join(term.canonical(other) for term in terms)
    )


def arithmetic(lang: Lang, rng: random.Random) -> Sample:
    """Handle numbers: spell, read, compare, add small ones."""
    a, b = rng.randint(0, 100), rng.randint(0, 100)
    spelled = zh_number(a) if lang == "zh" else en_number(a)
    small, unit = rng.randint(0, 20), rng.randint(0, 9)
    forms = {
        "{w}写成数字" if lang == "zh" else "write {w} in digits": str(a),
        "{w}是多少" if lang == "zh" else "which number is {w}": str(a),
        "{a}用汉字怎么写" if lang == "zh" else "spell {a}": spelled,
        "{s}加{u}等于几" if lang == "zh" else "what is {s} plus {u}?": str(small + unit),
        "{a}和{b}哪个大" if lang == "zh" else "which is larger, {a} or {b}?": str(max(a, b)),
        "{a}后面的数" if lang == "zh" else "the number after {a}": str(a + 1),
    }
    pattern = rng.choice(list(forms))
    return _sample("number", lang, pattern.format(a=a, b=b, w=spelled, s=small, u=unit), forms[pattern])


def extract(lang: Lang, rng: random.Random) -> Sample:
    """Read fields out of a record, as words or as a JSON object."""
    fields = rng.sample(_FIELDS[lang], rng.randint(2, 4))
    record = {field: _value(field, lang, rng) for field in fields}
    colon, comma = ("：", "，") if lang == "zh" else (": ", ", ")
    text = comma.join(f"{name}{colon}{value}" for name, value in record.items())
    if rng.random() < 0.5:
        return _one_field(record, text, lang, rng)
    forms = "[转成JSON：{text}|{text}，写成JSON]" if lang == "zh" else "[as JSON: {text}|{text}. Write it as JSON]"
    return _sample("extract", lang, say(forms, rng, {"text": text}), json.dumps(record, ensure_ascii=False))


def _one_field(record: dict[str, str | int], text: str, lang: Lang, rng: random.Random) -> Sample:
    wanted = rng.choice(list(record))
    forms = {
        "zh": "[{text}。{field}是什么|从中找出{field}：{text}]",
        "en": "[{text}. what is the {field}?|find the {field}: {text}]",
    }
    ask = say(forms[lang], rng, {"text": text, "field": wanted})
    return _sample("extract", lang, ask, str(record[wanted]))


def _identifier(rng: random.Random) -> str:
    """Draw a name as programs write it: of a function, a service, or a thing; most things named so do not exist."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_FUNCTIONS)
    thing = f"{rng.choice(lexicon.ROOMS).id}_{rng.choice(TERMS).id}" if rng.random() < 0.6 else rng.choice(TERMS).id
    return thing if kind < 0.6 else f"{rng.choice(_DOMAINS)}.{rng.choice((thing, rng.choice(_FUNCTIONS)))}"


def _argument(lang: Lang, rng: random.Random) -> str | int:
    """Draw what a parameter may hold."""
    kind = rng.random()
    if kind < 0.4:
        return rng.randint(0, 120)
    if kind < 0.55:
        return _identifier(rng)
    return rng.choice(TERMS).canonical(lang) if kind < 0.85 else rng.choice(_random_words(lang, rng))


def identifiers(lang: Lang, rng: random.Random) -> Sample:
    """Copy identifiers, or write a named call with its arguments as JSON. Few of these tokens occur elsewhere."""
    names = [_identifier(rng) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        listed = ", ".join(names)
        return _sample(
            "identifier",
            lang,
            say("[照着写|代码|抄写]：" if lang == "zh" else "[code|write|type]: ", rng) + listed,
            listed,
        )
    record = {name: _argument(lang, rng) for name in rng.sample(_PARAMETERS, rng.randint(1, 3))}
    said = ("，" if lang == "zh" else ", ").join(f"{name} {value}" for name, value in record.items())
    if rng.random() < 0.4:
        return _sample("identifier", lang, f"JSON: {said}", json.dumps(record, ensure_ascii=False))
    call = json.dumps({"name": names[0], "arguments": record}, ensure_ascii=False)
    return _sample("identifier", lang, f"{'调用' if lang == 'zh' else 'call '}{names[0]}: {said}", call)


def _tool(rng: random.Random) -> dict[str, object]:
    fields = rng.sample(_TOOL_FIELDS, rng.randint(1, 3))
    kinds = {f: {"type": "integer" if f in ("count", "amount") else "string"} for f in fields}
    function = {
        "name": f"{rng.choice(_TOOL_VERBS)}_{rng.choice(_TOOL_NOUNS)}",
        "parameters": {"type": "object", "properties": kinds},
    }
    return {"type": "function", "function": function}


def _tool_request(tool: dict[str, object], lang: Lang, rng: random.Random) -> tuple[str, Call]:
    function = tool["function"]
    assert isinstance(function, dict)
    name, fields = str(function["name"]), list(function["parameters"]["properties"])
    arguments = {field: _value(field, lang, rng) for field in fields}
    verb, noun = name.split("_")
    said = (", " if lang == "en" else "，").join(f"{field} {value}" for field, value in arguments.items())
    pattern = (
        "[请|帮我|]{verb} {noun}，{said}"
        if lang == "zh"
        else "[please |can you |]{verb} [a|the] {noun}[:| with|,] {said}"
    )
    return say(pattern, rng, {"verb": verb, "noun": noun, "said": said}), Call(name, arguments)


def tool_use(lang: Lang, rng: random.Random) -> Sample:
    """Call one of the tools that the system message lists."""
    tools = [_tool(rng) for _ in range(rng.randint(1, 2))]
    ask, call = _tool_request(rng.choice(tools), lang, rng)
    return _sample("tool_use", lang, ask, call.text(), tuple(tools))


def _read_out(notices: list[Notice], lang: Lang) -> str:
    if lang == "zh":
        return "".join(f"{n.sender}说：{n.text}。" for n in notices)
    return " ".join(f"{n.sender} says: {n.text}." for n in notices)


def notice_question(lang: Lang, rng: random.Random) -> Sample:
    """Ask about a list of notifications in words: read it out, count it, who wrote, what one of them said."""
    notices = draw_notices(lang, "train", rng)
    one, zh = rng.choice(notices), lang == "zh"
    senders = list(dict.fromkeys(n.sender for n in notices))
    said = [n for n in notices if n.sender == one.sender]
    listed = "、".join(senders) if zh else ", ".join(senders)
    brief = "；".join(n.fact for n in said) if zh else "; ".join(n.fact for n in said)
    forms = {
        "念一下通知" if zh else "read my notifications": _read_out(notices, lang),
        "有几条通知" if zh else "how many notifications are there": f"{len(notices)}条。" if zh else f"{len(notices)}.",
        "谁发来的" if zh else "who wrote to me": f"{listed}。" if zh else f"{listed}.",
        f"{one.sender}说了什么" if zh else f"what did {one.sender} say": _read_out(said, lang),
        f"{one.sender}有什么事" if zh else f"what does {one.sender} want": f"{brief}。" if zh else f"{brief}.",
        rng.choice(notice_wording.ASK[lang]): f"您有{len(notices)}条通知，来自{listed}。"
        if zh
        else f"You have {len(notices)} notifications from {listed}.",
    }
    question = rng.choice(list(forms) + list(forms)[3:5])
    turns = ask_about(listing(notices, rng), question, lang, rng)
    return Sample("notice_question", lang, f"notice_question/{one.key}", turns, forms[question])


def bullets(lang: Lang, rng: random.Random) -> Sample:
    """Turn `who: what` pairs into a list with a line per name: a summary's grouping, with nothing to understand."""
    pairs = [
        (n.sender, rng.choice((n.fact, n.fact, rng.choice(_random_words(lang, rng)))))
        for n in draw_notices(lang, "train", rng)
    ]
    said = "\n".join(f"{name}: {item}" for name, item in pairs)
    ask = rng.choice(_LIST_ASKS[lang])
    noun = rng.choice(("项", "条", "条通知") if lang == "zh" else ("item", "message", "notification"))
    return _sample("bullets", lang, f"{ask}\n{said}", bulleted(pairs, noun, lang))


def bulleted(pairs: Sequence[tuple[str, str]], noun: str, lang: Lang) -> str:
    """Return a list with a line per name: how many items it has, and the items."""
    groups: dict[str, list[str]] = {}
    for name, item in pairs:
        groups.setdefault(name, []).append(item)
    if lang == "zh":
        lines = [f"- {name}（{len(items)}）：{'；'.join(items)}" for name, items in groups.items()]
        return "\n".join([f"共{len(pairs)}{noun}：", *lines])
    lines = [f"- {name} ({len(items)}): {'; '.join(items)}" for name, items in groups.items()]
    return "\n".join([f"{len(pairs)} {noun}{'s' * (len(pairs) > 1)}:", *lines])


def counted_list(lang: Lang, rng: random.Random) -> Sample:
    """Return notifications with such a list of their facts: text for the tokenizer to be trained on."""
    notices = draw_notices(lang, "train", rng)
    turns = ask_about(listing(notices, rng), rng.choice(notice_wording.ASK[lang]), lang, rng)
    noun = "条通知" if lang == "zh" else "notification"
    pairs = [(notice.sender, notice.fact) for notice in notices]
    return Sample("counted_list", lang, "counted_list", turns, bulleted(pairs, noun, lang))
