"""Lists of notifications, and the summary of a list: their number, and per sender the facts that matter."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deploy.demo import lexicon, people
from deploy.demo import notice_wording as wording
from deploy.demo.commands import MAX_DRAWS, system_turn
from deploy.demo.phrasing import Lang, say
from deploy.demo.samples import Message, Sample, Split, bucket_split, combination_split, phrasings_for

SYSTEM_ZH: Final = ("你是通知助手。", "你负责处理手机通知。")
SYSTEM_EN: Final = ("You are a notification assistant.", "You take care of the phone's notifications.")
MAX_NOTICES: Final = 5
_SAME_SENDER_SHARE: Final = 0.35
_LAYOUTS: Final = ("[{app}] {sender}: {text}", "{app} | {sender} | {text}", "- {sender} ({app}): {text}")


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification: the app and sender it shows, its text, and the fact that matters. Apps are their own senders."""

    kind: str
    app: str
    sender: str
    text: str
    fact: str
    slots: dict[str, str]

    @property
    def key(self) -> str:
        """The combination that is held out: who and what."""
        return f"notice/{self.sender}/{self.kind}/{self.fact}"


def draw_notices(lang: Lang, split: Split, rng: random.Random) -> list[Notice]:
    """Draw one to five notifications of a split; some share a sender."""
    notices: list[Notice] = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 3, 4, 4, MAX_NOTICES))):
        earlier = [n for n in notices if n.app != n.sender]
        reuse = rng.choice(earlier) if earlier and rng.random() < _SAME_SENDER_SHARE else None
        notices.append(_draw_notice(lang, split, rng, reuse))
    return notices


def _draw_notice(lang: Lang, split: Split, rng: random.Random, reuse: Notice | None) -> Notice:
    for _ in range(MAX_DRAWS):
        kinds = [k for k in wording.KINDS[lang] if k.app is None] if reuse else wording.KINDS[lang]
        notice = _make(rng.choice(kinds), lang, split, rng, reuse)
        if bucket_split(notice.key) == combination_split(split):
            return notice
    raise RuntimeError(f"no {split} notification in {MAX_DRAWS} draws")


def _make(kind: wording.NoticeKind, lang: Lang, split: Split, rng: random.Random, reuse: Notice | None) -> Notice:
    slots = _slots(lang, rng)
    app = kind.app or (reuse.app if reuse else rng.choice(wording.PERSON_APPS[lang]))
    sender = kind.app or (reuse.sender if reuse else people.person(lang, rng))
    text = say(rng.choice(phrasings_for(kind.texts, split)), rng, slots).strip().replace("  ", " ")
    return Notice(kind.id, app, sender, text, say(kind.fact, rng, slots), slots)


def _slots(lang: Lang, rng: random.Random) -> dict[str, str]:
    """Draw every value that a notification may mention."""
    low = rng.randint(-9, 30)
    return {
        "time": f"{rng.randint(6, 22)}:{rng.choice(('00', '15', '30', '45', f'{rng.randint(1, 59):02d}'))}",
        "place": people.place(lang, rng),
        "n": str(rng.randint(2, 60)),
        "amount": rng.choice((str(rng.randint(10, 3000)), f"{rng.randint(1, 300)}.{rng.randint(10, 99)}")),
        "rest": str(rng.randint(100, 9999)),
        "tail": f"{rng.randint(0, 9999):04d}",
        "code": f"{rng.randint(1, 19)}-{rng.randint(1, 9)}-{rng.randint(1000, 9999)}",
        "otp": f"{rng.randint(0, 999999):06d}",
        "low": str(low),
        "high": str(low + rng.randint(3, 12)),
        "flight": f"{rng.choice(('CA', 'MU', 'CZ', 'HU', 'BA', 'LH', 'AF', 'SQ'))}{rng.randint(100, 9999)}",
        "gate": f"{rng.choice('ABCDE')}{rng.randint(1, 60)}",
        "month": str(rng.randint(1, 12)),
        "steps": str(rng.randint(500, 25000)),
        **_words(lang, rng),
    }


def _words(lang: Lang, rng: random.Random) -> dict[str, str]:
    zh = lang == "zh"
    return {
        "day": rng.choice(wording.ZH_DAYS if zh else wording.EN_DAYS),
        "item": rng.choice(wording.ZH_ITEMS if zh else wording.EN_ITEMS),
        "weather": rng.choice(wording.ZH_WEATHER if zh else wording.EN_WEATHER),
        "event": rng.choice(wording.ZH_EVENTS if zh else wording.EN_EVENTS),
        "state": rng.choice(wording.ZH_STATES if zh else wording.EN_STATES),
        "fee": rng.choice(wording.ZH_FEES if zh else wording.EN_FEES),
        "room": rng.choice(lexicon.ROOMS).canonical(lang),
        "device": rng.choice(lexicon.DEVICES).term.canonical(lang),
    }


def listing(notices: Sequence[Notice], rng: random.Random) -> str:
    """Return the notifications as the phone hands them over, in one of three layouts."""
    layout = rng.choice(_LAYOUTS)
    return "\n".join(layout.format(app=n.app, sender=n.sender, text=n.text) for n in notices)


def by_sender(notices: Sequence[Notice]) -> list[Notice]:
    """Return the notifications as a phone bundles them: senders in order of arrival, each sender's together."""
    senders = list(dict.fromkeys(notice.sender for notice in notices))
    return sorted(notices, key=lambda notice: senders.index(notice.sender))


def summary(notices: Sequence[Notice], lang: Lang) -> str:
    """Return the summary that the adapter is to write."""
    groups: dict[str, list[str]] = {}
    for notice in notices:
        groups.setdefault(notice.sender, []).append(notice.fact)
    if lang == "zh":
        lines = [f"- {sender}：{'；'.join(facts)}" for sender, facts in groups.items()]
        return "\n".join([f"共{len(notices)}条通知：", *lines])
    lines = [f"- {sender}: {'; '.join(facts)}" for sender, facts in groups.items()]
    return "\n".join([f"{len(notices)} notification{'s' if len(notices) > 1 else ''}:", *lines])


def ask_about(listed: str, question: str, lang: Lang, rng: random.Random) -> tuple[Message, ...]:
    """Return the turns that hand over a list with a question before or after it."""
    colon = "：" if lang == "zh" else ":"
    text = f"{question}{colon}\n{listed}" if rng.random() < 0.7 else f"{listed}\n{question}"
    return (*system_turn(SYSTEM_ZH, SYSTEM_EN, lang, rng), Message("user", text))


def summary_sample(lang: Lang, split: Split, rng: random.Random) -> Sample:
    """Return a list of notifications whose answer is their summary."""
    notices = by_sender(draw_notices(lang, split, rng))
    turns = ask_about(listing(notices, rng), rng.choice(wording.ASK[lang]), lang, rng)
    return Sample("summary", lang, "+".join(n.key for n in notices), turns, summary(notices, lang))


def line_score(answer: str, reference: str) -> float:
    """Return the F1 of the summary's lines: a line counts when the sender and every fact are right."""
    got, want = answer.strip().splitlines(), reference.strip().splitlines()
    left = list(want)
    hits = 0
    for line in got:
        if line in left:
            left.remove(line)
            hits += 1
    return 2 * hits / (len(got) + len(want)) if got else 0.0
