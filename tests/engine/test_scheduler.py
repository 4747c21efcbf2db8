"""Who runs next, on sequences without states and with time written down here."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.business import Business, Deadline
from engine.errors import CapacityError, RateLimitError
from engine.scheduler import Admission, Limits, Scheduler, StepKind
from engine.sequence import Request, Sequence
from engine.step_costs import StepCosts
from tests.engine.scripted_backend import SpellingTokenizer

LIMITS = Limits(
    max_running=4,
    max_waiting=8,
    prefill_chunk_tokens=8,
    max_bucket_s=0.25,
    cuts_anywhere=True,
    ageing_s=2.0,
    mixes_adapters=True,
    policy="deadlines",
)
URGENT = Business("urgent", deadline=Deadline.URGENT)
PATIENT = Business("patient", deadline=Deadline.PATIENT)
INTERACTIVE = Business("interactive")
HIGH, LOW = Business("high", priority=5), Business("low", priority=-5)
PREFILL, DECODE = StepKind.PREFILL, StepKind.DECODE


def sequence(name, num_prompt_tokens=3, adapter=None, business=PATIENT, at_s=0.0):
    request = Request(tuple(range(1, num_prompt_tokens + 1)), name, adapter, business=business)
    text = SpellingTokenizer().stream()
    return Sequence(request, max_tokens=50, eos_token_ids=(), text=text, submitted_at=at_s)


class Memory:
    """Has `room` for so many sequences; a business in `capped` has reached its own cap."""

    def __init__(self, room):
        self.room = room
        self.capped = set()
        self.damaged = set()
        self.evicted = []
        self.is_exact = True

    def admit(self, sequence):
        if sequence.business.name in self.capped:
            return Admission.OVER_OWN_CAP
        if self.room <= 0:
            return Admission.NO_ROOM
        self.room -= 1
        return Admission.ADMITTED

    def outlook(self, sequence, without):
        if sequence.business.name in self.capped:
            return Admission.OVER_OWN_CAP
        return Admission.ADMITTED if self.room + len(without) > 0 else Admission.NO_ROOM

    def evict(self, sequence):
        if not self.is_exact:
            return False
        self.evicted.append(sequence.request_id)
        sequence.num_computed = 0
        self.room += 1
        return True


class Machine:
    """A scheduler whose steps are run as the engine would, with token 7 as every answer."""

    def __init__(self, room=99, costs=None, **limits):
        self.memory = Memory(room)
        self.costs = costs or StepCosts()
        self.scheduler = Scheduler(replace(LIMITS, **limits), memory=self.memory, costs=self.costs)
        self.now_s = 0.0
        self.pre_empted = []

    def add(self, name, *args, **kwargs):
        added = sequence(name, *args, **kwargs, at_s=self.now_s)
        self.scheduler.add(added)
        return added

    def step(self):
        batch = self.scheduler.schedule(self.now_s)
        if batch is None:
            return None
        self.pre_empted += [s.request_id for s in batch.pre_empted]
        for work in batch.work:
            work.sequence.num_computed += work.num_tokens
            if not work.sequence.num_pending:
                work.sequence.token_ids.append(7)
                work.sequence.last_token_at = self.now_s
        return batch.kind, [(work.sequence.request_id, work.num_tokens) for work in batch.work]

    def steps(self, count):
        return [self.step() for _ in range(count)]

    def end(self, sequence):
        self.scheduler.remove(sequence)
        self.memory.room += 1


def test_nothing_to_do():
    assert Machine().step() is None


# Buckets and turns


def test_a_long_prompt_runs_in_buckets():
    machine = Machine()
    machine.add("a", 20)
    assert machine.steps(4) == [*((PREFILL, [("a", n)]) for n in (8, 8, 4)), (DECODE, [("a", 1)])]


def test_prefill_and_decode_take_turns():
    machine = Machine()
    machine.add("a", business=INTERACTIVE)
    machine.step()
    machine.add("b", 24, business=INTERACTIVE)
    a, bucket = (DECODE, [("a", 1)]), (PREFILL, [("b", 8)])
    assert machine.steps(6) == [a, bucket, a, bucket, a, bucket]
    assert machine.step() == (DECODE, [("a", 1), ("b", 1)])


def test_short_prompts_share_a_step_in_order_of_arrival():
    machine = Machine()
    for name, length in (("a", 3), ("b", 5), ("c", 1)):
        machine.add(name, length)
    assert machine.step() == (PREFILL, [("a", 3), ("b", 5)])


def test_where_bits_depend_on_it_a_prompt_is_cut_at_the_same_places_whatever_else_runs():
    costs = StepCosts()
    costs.observe_prefill(8, 100.0)
    machine = Machine(costs=costs, cuts_anywhere=False)
    machine.add("a", 5)
    machine.add("b", 11)
    steps = machine.steps(5)
    assert [work for _, works in steps for work in works if work[0] == "b"] == [("b", 8), ("b", 3), ("b", 1)]


@pytest.mark.parametrize(
    ("token_s", "bucket_tokens"), [(0.0, 128), (0.001, 128), (0.25 / 100, 96), (0.25 / 64, 64), (1.0, 32)]
)
def test_a_bucket_takes_no_longer_than_what_is_urgent_may_wait(token_s, bucket_tokens):
    costs = StepCosts()
    costs.observe_prefill(100, 100 * token_s)
    machine = Machine(costs=costs, prefill_chunk_tokens=128)
    machine.add("a", 300)
    assert machine.step() == (PREFILL, [("a", bucket_tokens)])


def test_a_bucket_may_hold_less_than_the_least_if_the_owner_says_so():
    assert Machine(prefill_chunk_tokens=4).add("a", 9) is not None
    costs = StepCosts()
    costs.observe_prefill(1, 9.0)
    machine = Machine(costs=costs, prefill_chunk_tokens=4)
    machine.add("a", 9)
    assert machine.step() == (PREFILL, [("a", 4)])


# Who comes first


@pytest.mark.parametrize("business", [HIGH, URGENT], ids=["priority", "deadline"])
def test_what_is_urgent_waits_for_no_more_than_the_bucket_that_runs(business):
    machine = Machine()
    machine.add("answering")
    machine.add("long", 80)
    machine.steps(5)
    while machine.step()[0] is not PREFILL:
        pass
    machine.add("now", 6, business=business)
    kind, works = machine.step()
    assert (kind, works[0]) == (PREFILL, ("now", 6))


def test_an_earlier_deadline_goes_first_within_a_priority_and_not_beyond():
    machine = Machine(max_running=9)
    for name, business in (
        ("patient", PATIENT),
        ("urgent", URGENT),
        ("low", replace(URGENT, name="low", priority=-1)),
        ("interactive", INTERACTIVE),
    ):
        machine.add(name, 8, business=business)
    order = [works[0][0] for kind, works in machine.steps(12) if kind is PREFILL]
    assert order == ["urgent", "interactive", "patient"]


def test_a_higher_priority_runs_alone_until_it_decodes_and_others_may_join():
    machine = Machine()
    machine.add("low", 16, business=LOW)
    machine.add("high", 16, business=HIGH)
    assert machine.steps(2) == [(PREFILL, [("high", 8)])] * 2
    assert machine.step() == (DECODE, [("high", 1)])


def test_who_is_not_served_rises_until_it_is_once():
    machine = Machine(ageing_s=1.0)
    machine.add("low", 8, business=LOW)
    machine.add("high", 999, business=HIGH)
    served = []
    for _ in range(30):
        served.append(machine.step()[1][0][0])
        machine.now_s += 1.0
    assert served[:10] == ["high"] * 10
    assert served[10:12].count("low") == 1


@given(
    seeds=st.lists(st.tuples(st.sampled_from([HIGH, LOW, URGENT, PATIENT]), st.integers(1, 30)), min_size=2, max_size=4)
)
def test_nobody_who_runs_starves(seeds):
    """However high the others' priorities are: some step serves each within the time in which it outranks them."""
    machine = Machine(ageing_s=1.0)
    last = {}
    for number, (business, length) in enumerate(seeds):
        last[machine.add(str(number), length, business=business).request_id] = 0.0
    for _ in range(60):
        for name, _ in machine.step()[1]:
            last[name] = machine.now_s
        machine.now_s += 1.0
        # Ten levels lie between the highest and the lowest; prefill and decode of as many take turns then.
        assert machine.now_s - min(last.values()) < 10 + 2 * len(seeds) + 2


def test_first_come_first_served_if_the_owner_says_so():
    machine = Machine(policy="first_come", max_running=1)
    a = machine.add("a", 8, business=LOW)
    machine.step()
    machine.add("b", 8, business=HIGH)
    machine.now_s = 1000.0
    assert machine.step() == (DECODE, [("a", 1)])
    assert machine.memory.evicted == []
    machine.end(a)
    assert machine.step() == (PREFILL, [("b", 8)])


# Pre-emption


def test_a_running_prompt_that_is_passed_over_counts_once_and_goes_on_where_it_was():
    machine = Machine()
    long = machine.add("long", 20)
    machine.step()
    urgent = machine.add("urgent", 16, business=HIGH)
    assert machine.steps(3) == [(PREFILL, [("urgent", 8)]), (PREFILL, [("urgent", 8)]), (DECODE, [("urgent", 1)])]
    assert machine.pre_empted == ["long"]
    assert long.num_computed == 8
    machine.end(urgent)
    assert machine.steps(2) == [(PREFILL, [("long", 8)]), (PREFILL, [("long", 4)])]
    machine.add("again", 3, business=HIGH)
    machine.step()
    assert machine.pre_empted == ["long", "long"]


def test_turns_are_no_pre_emptions_and_neither_is_waiting():
    machine = Machine()
    machine.add("a", 20, business=INTERACTIVE)
    machine.add("b", 20, business=INTERACTIVE)
    machine.add("c", 3, business=LOW)
    machine.add("d", 3, business=INTERACTIVE)
    machine.steps(10)
    assert machine.pre_empted == []


# What runs together


def test_sequences_of_one_adapter_decode_side_by_side():
    machine = Machine()
    for name, adapter in (("a", "x"), ("b", None), ("c", "x"), ("d", None)):
        machine.add(name, 1, adapter)
    machine.step()
    assert machine.step() == (DECODE, [("a", 1), ("c", 1), ("b", 1), ("d", 1)])


def test_adapters_do_not_mix_if_the_owner_says_so():
    machine = Machine(mixes_adapters=False)
    for name, adapter in (("a", "x"), ("b", None), ("c", "x")):
        machine.add(name, 1, adapter)
    assert machine.steps(2) == [(PREFILL, [("a", 1), ("c", 1)]), (PREFILL, [("b", 1)])]
    assert machine.step()[1] in ([("a", 1), ("c", 1)], [("b", 1)])


def test_no_more_decode_together_than_the_most_urgent_can_bear():
    costs = StepCosts()
    for rows in range(1, 5):
        costs.observe_decode(rows, 0.04 * rows)
    machine = Machine(costs=costs)
    machine.add("urgent", 1, business=URGENT)
    for name in "abc":
        machine.add(name, 1)
    machine.step()
    machine.now_s = 1.0
    assert machine.step() == (DECODE, [("urgent", 1), ("a", 1)])  # 0.1 s from token to token
    machine.now_s = 2.5
    assert [name for name, _ in machine.step()[1]][:2] == ["b", "c"]


# Memory


def test_no_more_than_max_running_start_and_the_others_follow_in_order():
    machine = Machine(max_running=2)
    a, *_ = [machine.add(name, 1) for name in "abc"]
    assert machine.steps(2) == [(PREFILL, [("a", 1), ("b", 1)]), (DECODE, [("a", 1), ("b", 1)])]
    machine.end(a)
    assert machine.step() == (PREFILL, [("c", 1)])


def test_who_waits_for_memory_is_not_overtaken_by_its_like():
    machine = Machine(room=1)
    a, *_ = [machine.add(name, 1) for name in "abc"]
    assert machine.step() == (PREFILL, [("a", 1)])
    assert machine.scheduler.blocked.request_id == "b"
    machine.end(a)
    assert machine.step() == (PREFILL, [("b", 1)])


def test_who_has_reached_its_own_cap_is_overtaken():
    machine = Machine()
    machine.memory.capped = {"urgent"}
    machine.add("a", 1, business=URGENT)
    machine.add("b", 1)
    assert machine.step() == (PREFILL, [("b", 1)])
    assert machine.scheduler.blocked.request_id == "a"


def test_a_business_runs_as_many_as_it_may_and_others_pass():
    machine = Machine()
    some = replace(URGENT, max_running=1)
    for name, business in (("a", some), ("b", some), ("c", PATIENT)):
        machine.add(name, 1, business=business)
    assert machine.step() == (PREFILL, [("a", 1), ("c", 1)])


@pytest.mark.parametrize("limits", [{"room": 2}, {"max_running": 2}], ids=["memory", "places"])
def test_the_latest_of_the_lowest_priority_makes_way_and_comes_back(limits):
    machine = Machine(**limits)
    machine.add("a", 8, business=LOW)
    machine.add("b", 8, business=LOW)
    machine.steps(2)
    high = machine.add("c", 8, business=HIGH)
    assert machine.step() == (PREFILL, [("c", 8)])
    assert machine.memory.evicted == ["b"]
    machine.steps(5)
    machine.end(high)
    assert ("b", 8) in [work for _, works in machine.steps(3) for work in works]
    assert machine.memory.evicted == ["b"]


@pytest.mark.parametrize("reason", ["too large", "own cap", "inexact", "equal"])
def test_nobody_makes_way_where_it_does_not_help(reason):
    machine = Machine(room=-3 if reason == "too large" else 1)
    if reason == "too large":
        machine.memory.room = 1
    machine.add("a", 8, business=HIGH if reason == "equal" else LOW)
    machine.step()
    machine.memory.is_exact = reason != "inexact"
    machine.memory.capped = {"high"} if reason == "own cap" else set()
    if reason == "too large":
        machine.memory.room = -1
    machine.add("b", 8, business=HIGH)
    for _ in range(5):
        assert machine.step() == (DECODE, [("a", 1)])
    assert machine.memory.evicted == []


def test_one_that_has_grown_old_in_the_queue_is_no_obstacle_to_what_is_urgent():
    """It goes ahead, but who may evict takes a place that the old one could not have."""
    machine = Machine(room=1)
    machine.add("a", 8, business=LOW)
    machine.step()
    machine.add("old", 8, business=LOW)
    machine.now_s = 100.0
    machine.step()
    high = machine.add("high", 8, business=HIGH)
    machine.step()
    assert machine.memory.evicted == ["a"]
    assert [s.request_id for s in machine.scheduler.running] == ["high"]
    machine.end(high)
    machine.step()
    assert [s.request_id for s in machine.scheduler.running] == ["old"]


# The queue


def test_a_full_queue_refuses_and_says_when_to_come_back():
    costs = StepCosts()
    costs.observe_prefill(10, 10.0)
    machine = Machine(costs=costs, max_waiting=1)
    machine.add("a", 30)
    with pytest.raises(CapacityError, match="1 requests are waiting") as refused:
        machine.add("b")
    assert refused.value.retry_after_s == 30.0


def test_a_business_queues_as_many_as_it_may():
    machine = Machine()
    some = replace(PATIENT, max_waiting=1)
    machine.add("a", business=some)
    with pytest.raises(RateLimitError, match="'patient' are waiting") as refused:
        machine.add("b", business=some)
    assert refused.value.retry_after_s == 1.0
    machine.add("c", business=URGENT)


@pytest.mark.parametrize("limits", [{"max_waiting": 0}, {}], ids=["engine", "business"])
def test_where_nobody_may_queue_one_that_can_start_at_once_is_let_in(limits):
    machine = Machine(max_running=1, **limits)
    business = PATIENT if limits else replace(PATIENT, max_waiting=0)
    a = machine.add("a", business=business)
    with pytest.raises(CapacityError):
        machine.add("b", business=business)
    machine.step()
    with pytest.raises(CapacityError):
        machine.add("b", business=business)
    machine.end(a)
    machine.add("b", business=business)


def test_the_wait_is_for_the_prompts_of_those_before():
    costs = StepCosts()
    costs.observe_prefill(10, 1.0)
    machine = Machine(costs=costs)
    machine.add("a", 50)
    machine.add("b", 30, business=HIGH)
    waits = {b.name: machine.scheduler.expected_wait_s(sequence("x", business=b), 0.0) for b in (PATIENT, URGENT, HIGH)}
    assert waits == pytest.approx({"patient": 8.0, "urgent": 3.0, "high": 3.0})
    machine.steps(2)
    assert machine.scheduler.expected_wait_s(sequence("x", business=HIGH), 0.0) == pytest.approx(1.4)


def test_waiting_and_running_sequences_are_found_and_removed():
    machine = Machine(max_running=1)
    a, b = machine.add("a"), machine.add("b")
    machine.step()
    find = machine.scheduler.find
    assert (find("a"), find("b"), find("c")) == (a, b, None)
    machine.scheduler.remove(b)
    machine.scheduler.remove(a)
    assert (find("a"), machine.step()) == (None, None)
