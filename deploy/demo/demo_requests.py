"""The held-out requests that the product demo sends to its devices, with the answer of each adapter that can take them.

`python -m deploy.demo.demo_requests` writes `requests.json`. The home requests carry the answers of both versions.
"""

import json
import random
import sys
from pathlib import Path
from typing import Final

from deploy.demo.commands import utter
from deploy.demo.data import held_out
from deploy.demo.home import HOME
from deploy.demo.phrasing import LANGS, Lang, seeded
from deploy.demo.samples import Message, Sample

REQUESTS: Final = Path(__file__).parent / "requests.json"
NUM_PER_LANGUAGE: Final = 4
_SEED: Final = 2


def _entry(lang: Lang, messages: tuple[Message, ...], answers: dict[str, str]) -> dict[str, object]:
    return {"lang": lang, "messages": [message.as_dict() for message in messages], "answers": answers}


def _home(lang: Lang, rng: random.Random) -> dict[str, object]:
    said = utter(HOME, lang, "test", rng)
    calls = said.frame.calls
    return _entry(
        lang, (Message("user", said.text),), {"home-1.0.0": calls["home"].text(), "home-2.0.0": calls["home-2"].text()}
    )


def _of_language(samples: list[Sample], lang: Lang) -> list[Sample]:
    return [sample for sample in samples if sample.lang == lang][:NUM_PER_LANGUAGE]


def _task(task: str, adapter: str) -> list[dict[str, object]]:
    samples = held_out(task, "test", 8 * NUM_PER_LANGUAGE, _SEED)
    return [_entry(lang, s.messages, {adapter: s.answer}) for lang in LANGS for s in _of_language(samples, lang)]


def requests() -> dict[str, list[dict[str, object]]]:
    """Return the requests of each business."""
    rng = seeded("home", "requests", _SEED)
    return {
        "home": [_home(lang, rng) for lang in LANGS for _ in range(NUM_PER_LANGUAGE)],
        "car": _task("car", "car-1.0.0"),
        "summary": _task("summary", "summary-1.0.0"),
    }


def main() -> int:
    """Write the file."""
    REQUESTS.write_text(json.dumps(requests(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
