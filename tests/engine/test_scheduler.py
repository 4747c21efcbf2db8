import pytest

from engine.errors import CapacityError
from engine.scheduler import Scheduler, StepKind
from engine.sequence import Request, Sequence
from tests.engine.scripted_backend import SpellingTokenizer


def sequence(name, num_prompt_tokens=3, adapter=None):
    request = Request(tuple(range(1, num_prompt_tokens + 1)), name, adapter)
    text = SpellingTokenizer().stream()
    return Sequence(request, max_tokens=50, eos_token_ids=(), text=text, submitted_at=0.0)


def scheduler(*, max_running=4, max_waiting=8, prefill_chunk_tokens=8, admit=lambda _: True):
    return Scheduler(
        max_running=max_running, max_waiting=max_waiting, prefill_chunk_tokens=prefill_chunk_tokens, admit=admit
    )


def run(schedule):
    """Run the next step as the engine would, with token 7 as every answer."""
    batch = schedule.schedule()
    if batch is None:
        return None
    for work in batch.work:
        work.sequence.num_computed += work.num_tokens
        if not work.sequence.num_pending:
            work.sequence.token_ids.append(7)
    return batch.kind, [(work.sequence.request_id, work.num_tokens) for work in batch.work]


def test_nothing_to_do():
    assert scheduler().schedule() is None


def test_a_long_prompt_runs_in_chunks():
    schedule = scheduler()
    schedule.add(sequence("a", 20))
    steps = [run(schedule) for _ in range(4)]
    prefill = [(StepKind.PREFILL, [("a", n)]) for n in (8, 8, 4)]
    assert steps == [*prefill, (StepKind.DECODE, [("a", 1)])]


def test_prefill_and_decode_take_turns():
    schedule = scheduler()
    schedule.add(sequence("a"))
    run(schedule)
    schedule.add(sequence("b", 24))
    kinds = [run(schedule) for _ in range(6)]
    a, chunk = (StepKind.DECODE, [("a", 1)]), (StepKind.PREFILL, [("b", 8)])
    assert kinds == [a, chunk, a, chunk, a, chunk]
    assert run(schedule) == (StepKind.DECODE, [("a", 1), ("b", 1)])


def test_short_prompts_share_a_step_in_order_of_arrival():
    schedule = scheduler()
    for name, length in (("a", 3), ("b", 5), ("c", 1)):
        schedule.add(sequence(name, length))
    assert run(schedule) == (StepKind.PREFILL, [("a", 3), ("b", 5)])


def test_a_prompt_is_cut_at_the_same_places_whatever_else_runs():
    schedule = scheduler()
    schedule.add(sequence("a", 5))
    schedule.add(sequence("b", 11))
    steps = [run(schedule) for _ in range(6)]
    assert [work for _, works in steps for work in works if work[0] == "b"] == [("b", 8), ("b", 3), ("b", 1)]


def test_sequences_of_one_adapter_decode_side_by_side():
    schedule = scheduler()
    for name, adapter in (("a", "x"), ("b", None), ("c", "x"), ("d", None)):
        schedule.add(sequence(name, 1, adapter))
    run(schedule)
    assert run(schedule) == (StepKind.DECODE, [("a", 1), ("c", 1), ("b", 1), ("d", 1)])


def test_no_more_than_max_running_start_and_the_others_follow_in_order():
    schedule = scheduler(max_running=2)
    sequences = [sequence(name, 1) for name in "abc"]
    for waiting in sequences:
        schedule.add(waiting)
    assert run(schedule) == (StepKind.PREFILL, [("a", 1), ("b", 1)])
    assert run(schedule) == (StepKind.DECODE, [("a", 1), ("b", 1)])
    schedule.remove(sequences[0])
    assert run(schedule) == (StepKind.PREFILL, [("c", 1)])
    assert [s.request_id for s in schedule.running] == ["b", "c"]


def test_who_cannot_be_admitted_is_not_overtaken():
    refused = {"b"}
    schedule = scheduler(admit=lambda s: s.request_id not in refused)
    for name in "abc":
        schedule.add(sequence(name, 1))
    assert run(schedule) == (StepKind.PREFILL, [("a", 1)])
    refused.clear()
    run(schedule)
    assert run(schedule) == (StepKind.PREFILL, [("b", 1), ("c", 1)])


def test_a_full_queue_refuses():
    schedule = scheduler(max_waiting=1)
    schedule.add(sequence("a"))
    with pytest.raises(CapacityError, match="1 requests are waiting"):
        schedule.add(sequence("b"))


def test_waiting_and_running_sequences_are_found_and_removed():
    schedule = scheduler(max_running=1)
    a, b = sequence("a"), sequence("b")
    schedule.add(a)
    schedule.add(b)
    run(schedule)
    assert (schedule.find("a"), schedule.find("b"), schedule.find("c")) == (a, b, None)
    schedule.remove(b)
    schedule.remove(a)
    assert (schedule.find("a"), schedule.schedule()) == (None, None)
