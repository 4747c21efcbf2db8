from engine.metrics import Counters, Metrics, Summary, process_memory


def test_totals_are_the_sum_over_adapters():
    metrics = Metrics()
    for adapter, tokens, seconds in ((None, 10, 1.0), ("x", 30, 0.5)):
        counters = metrics.of(adapter)
        counters.decode_tokens += tokens
        counters.decode_s += seconds
        counters.ttft.observe(seconds)
    total = metrics.total()
    assert (total.decode_tokens, total.decode_s) == (40, 1.5)
    assert total.decode_tokens_per_s == 40 / 1.5
    assert total.ttft == Summary(2, 1.5, 1.0)
    assert total.ttft.mean_s == 0.75


def test_a_snapshot_does_not_change_with_the_counters():
    metrics = Metrics()
    metrics.of("x").ttft.observe(1.0)
    snapshot = metrics.by_adapter()
    metrics.of("x").ttft.observe(2.0)
    metrics.of("x").requests += 1
    assert snapshot == {"x": Counters(ttft=Summary(1, 1.0, 1.0))}


def test_rates_without_work_are_zero():
    assert Counters().decode_tokens_per_s == Counters().prefill_tokens_per_s == Summary().mean_s == 0.0


def test_memory_comes_from_the_kernel(tmp_path):
    rollup = tmp_path / "smaps_rollup"
    rollup.write_text(
        "5581a0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]\n"
        "Rss:               20480 kB\nPss:               10240 kB\nAnonymous:          5120 kB\n"
    )
    assert process_memory(rollup) == (10 << 20, 5 << 20)
    assert process_memory(tmp_path / "missing") == (0, 0)


def test_this_process_takes_memory():
    pss_bytes, anonymous_bytes = process_memory()
    assert pss_bytes > anonymous_bytes > 1 << 20
