import json
import re
from itertools import islice

import pytest

from deploy.demo import car_wording, data, demo_requests, home_wording, notices, samples
from deploy.demo.phrasing import en_number, zh_number
from deploy.demo.samples import SPLITS, bucket_split

CALL_TASKS = ("home", "home-2", "car")
SWITCHED = ("light", "climate", "fan", "humidifier", "media_player", "switch", "vacuum")
TOOLS = {
    "home": set(home_wording.WORDINGS),
    "home-2": {
        *(f"{domain}.turn_{state}" for domain in SWITCHED for state in ("on", "off")),
        *("climate.set_temperature", "climate.set_fan_mode", "fan.set_fan_mode", "media_player.volume_set"),
        *("cover.open_cover", "cover.close_cover", "cover.set_cover_position"),
        *("scene.turn_on", "timer.turn_off_after", "state.get"),
    },
    "car": set(car_wording.WORDINGS) - {"navigate_avoiding"},
}


def take(task, split, count, seed=0):
    return list(islice(data.stream(task, split, seed), count))


def parse_call(answer):
    match = re.fullmatch(r"<tool_call>\n(\{.*\})\n</tool_call>", answer)
    assert match, answer
    return json.loads(match.group(1))


@pytest.mark.parametrize("task", data.TASKS)
def test_a_seed_is_a_data_set(task):
    assert take(task, "train", 50, seed=7) == take(task, "train", 50, seed=7)
    assert take(task, "train", 50, seed=7) != take(task, "train", 50, seed=8)


@pytest.mark.parametrize("task", data.TASKS)
def test_combinations_of_the_splits_are_disjoint(task):
    keys = {split: {key for s in take(task, split, 500) for key in s.key.split("+")} for split in SPLITS}
    assert not keys["train"] & (keys["test"] | keys["valid"] | keys["phrasing"])
    assert not keys["valid"] & keys["test"]


def test_the_base_never_saw_a_held_out_command():
    said = [s for s in islice(data.base_stream(3), 1500) if s.task in ("home_ack", "car_ack") and "|" not in s.key]
    assert len(said) > 200
    assert {bucket_split(s.key) for s in said} == {"train"}


def test_unseen_phrasings_are_in_no_other_split():
    patterns = home_wording.WORDINGS["turn_on"].zh
    kept = set(samples.phrasings_for(patterns, "phrasing"))
    assert len(kept) == 1
    assert all(not kept & set(samples.phrasings_for(patterns, split)) for split in ("train", "valid", "test"))


@pytest.mark.parametrize("task", CALL_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_a_call_of_a_known_tool(task, split):
    for sample in take(task, split, 200):
        call = parse_call(sample.answer)
        assert call["name"] in TOOLS[task]
        assert call["arguments"]


@pytest.mark.parametrize("task", CALL_TASKS)
def test_every_tool_occurs(task):
    assert {parse_call(s.answer)["name"] for s in take(task, "train", 2000)} == TOOLS[task]


@pytest.mark.parametrize("task", data.TASKS)
def test_both_languages_occur_alike(task):
    chinese = sum(s.lang == "zh" for s in take(task, "test", 400))
    assert 150 < chinese < 250


def test_numbers_of_an_answer_were_said():
    for sample in take("home", "test", 300):
        said = sample.messages[-1].content.lower()
        for value in parse_call(sample.answer)["arguments"].values():
            if isinstance(value, int):
                assert any(form in said for form in (str(value), zh_number(value), en_number(value))), sample


def test_memorising_does_not_do():
    asked = [s.messages[-1].content for s in take("home", "train", 5000)]
    assert len(set(asked)) > 0.9 * len(asked)


def test_the_two_home_schemas_answer_one_request_differently():
    for entry in demo_requests.requests()["home"]:
        first, second = (parse_call(answer) for answer in entry["answers"].values())
        assert first["name"] != second["name"]


def test_the_base_calls_tools_only_when_they_are_listed():
    for sample in islice(data.base_stream(0), 1500):
        if not sample.tools:
            assert "<tool_call>" not in sample.answer
        assert not sample.answer.startswith("共")


def test_a_summary_accounts_for_every_notification():
    for sample in take("summary", "test", 150):
        head, *lines = sample.answer.splitlines()
        num_facts = sum(len(re.split("[;；]", line)) for line in lines)
        assert int(re.search(r"\d+", head).group()) == num_facts == len(sample.key.split("+"))
        assert len({line.split(":")[0].split("：")[0] for line in lines}) == len(lines)


def test_spoken_numbers():
    assert [zh_number(n) for n in (0, 10, 12, 20, 26, 100)] == ["零", "十", "十二", "二十", "二十六", "一百"]
    assert [en_number(n) for n in (0, 13, 20, 26, 100)] == ["zero", "thirteen", "twenty", "twenty-six", "one hundred"]
    assert len({zh_number(n) for n in range(101)}) == len({en_number(n) for n in range(101)}) == 101


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("a\nb\nc", 1.0),
        ("a\nb\nx", 2 / 3),
        ("a\na\na", 1 / 3),
        ("", 0.0),
        ("a\nb\nc\nd\ne", 3 * 2 / 8),
        ("c\nb\na", 1.0),
    ],
)
def test_line_score(answer, score):
    assert notices.line_score(answer, "a\nb\nc") == pytest.approx(score)


def test_committed_requests_are_the_generated_ones():
    assert json.loads(demo_requests.REQUESTS.read_text(encoding="utf-8")) == demo_requests.requests()
