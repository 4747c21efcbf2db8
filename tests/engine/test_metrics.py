import pytest

from engine.distribution import distribution_of
from engine.metrics import Counters, Metrics, Subject, mapped_pss, process_memory


def counted():
    metrics = Metrics()
    for adapter, business, tokens, seconds in ((None, "", 10, 1.0), ("x", "home", 30, 0.5), ("x", "car", 5, 0.5)):
        metrics.of(adapter, business).add(decode_tokens=tokens, decode_s=seconds)
        metrics.of(adapter, business).ttft_s.observe(seconds)
    return metrics


def test_totals_are_the_sum_over_subjects():
    total = counted().total()
    assert (total.decode_tokens, total.decode_s) == (45, 2.0)
    assert total.decode_tokens_per_s == 22.5
    assert total.ttft_s == distribution_of([1.0, 0.5, 0.5])


def test_businesses_with_one_adapter_are_counted_apart():
    by_subject = counted().by_subject()
    assert {subject: counters.decode_tokens for subject, counters in by_subject.items()} == {
        Subject(None, ""): 10,
        Subject("x", "home"): 30,
        Subject("x", "car"): 5,
    }


def test_what_is_drained_is_news_once_and_stays_in_the_totals():
    metrics = counted()
    assert metrics.drain() == metrics.by_subject()
    metrics.of("x", "home").add(decode_tokens=1, pre_emptions=2)
    assert metrics.drain() == {Subject("x", "home"): Counters(decode_tokens=1, pre_emptions=2)}
    assert metrics.drain() == {}
    assert (metrics.total().decode_tokens, metrics.total().pre_emptions) == (46, 2)


def test_a_snapshot_does_not_change_with_the_counters():
    metrics = Metrics()
    metrics.of("x").ttft_s.observe(1.0)
    snapshot = metrics.by_subject()
    metrics.of("x").ttft_s.observe(2.0)
    metrics.of("x").add(requests=1)
    assert snapshot == {Subject("x", ""): Counters(ttft_s=distribution_of([1.0]))}


def test_rates_without_work_are_zero():
    assert Counters().decode_tokens_per_s == Counters().prefill_tokens_per_s == 0.0


def test_memory_comes_from_the_kernel(tmp_path):
    rollup = tmp_path / "smaps_rollup"
    rollup.write_text(
        "5581a0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]\n"
        "Rss:               20480 kB\nPss:               10240 kB\nAnonymous:          5120 kB\n"
    )
    assert process_memory(rollup) == (10 << 20, 5 << 20)
    assert process_memory(tmp_path / "missing") == (0, 0)


def test_the_share_of_a_mapped_file_is_the_sum_of_its_mappings(tmp_path):
    smaps = tmp_path / "smaps"
    mapping = "7f0000000000-7f0000001000 r--s 00000000 fe:01 11 {}\nSize: 8 kB\nPss: {} kB\nVmFlags: rd mr\n"
    smaps.write_text("".join(mapping.format(*pair) for pair in (("/a b", 4), ("/c", 8), ("/a b", 16), ("", 32))))
    pss = mapped_pss(smaps)
    assert (pss["/a b"], pss["/c"], pss["/missing"]) == (20 << 10, 8 << 10, 0)
    assert mapped_pss(tmp_path / "missing") == {}


def test_this_process_takes_memory():
    pss_bytes, anonymous_bytes = process_memory()
    assert pss_bytes > anonymous_bytes > 1 << 20


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 1.0])
def test_quantiles_are_within_one_per_cent(q):
    values = [1.1**index for index in range(101)]
    assert distribution_of(values).quantile(q) == pytest.approx(values[round(100 * q)], rel=0.011)
    halves = distribution_of(values[:50]).merge(distribution_of(values[50:]))
    assert halves.quantile(q) == distribution_of(values).quantile(q)
