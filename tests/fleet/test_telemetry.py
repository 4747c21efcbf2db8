from __future__ import annotations

import gzip
import math
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from edge_agent.protocol import Metric, Sample, TelemetryBatch, distribution_of
from engine.strict_json import encode
from fleet.device_api.bodies import gunzip
from fleet.device_api.errors import BodyTooLargeError
from fleet.telemetry import queries
from fleet.telemetry.actions import delete_old
from fleet.telemetry.models import TelemetryBatchRecord, TelemetryRow
from fleet.telemetry.rules import is_counter, unit_of

MINUTE_S = int(time.time()) // 60 * 60 - 600
BASE, HOME, CAR = "a" * 64, "b" * 64, "c" * 64


def sample(*values: float, at: int = MINUTE_S, metric: Metric = Metric.DECODE_TOKENS_PER_S, **place: str) -> Sample:
    return Sample(at, metric, distribution_of(values), **place)


def batch_of(device: Any, *samples: Sample, batch_id: str = "batch-1") -> TelemetryBatch:
    return TelemetryBatch(batch_id, device.device_id, samples)


def ask(operator: Any, **query: Any) -> Any:
    query = {"metric": "decode_tokens_per_s", "from": MINUTE_S, "to": MINUTE_S + 600} | query
    return operator.get("/telemetry", **query)


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_becomes_rows(enrolled: Any, *, packed: bool) -> None:
    device = enrolled()
    response = device.send_batch(batch_of(device, sample(1.0, 2.0, base=BASE), sample(3.0)), packed=packed)
    assert (response.status_code, response.headers["Socle-Samples-Refused"]) == (204, "0")
    row = TelemetryRow.objects.get(base=BASE)
    assert (row.count, row.sum, row.min, row.max) == (2, 3.0, 1.0, 2.0)
    assert row.minute == datetime.fromtimestamp(MINUTE_S, UTC)


def test_a_repeated_batch_is_taken_once(enrolled: Any) -> None:
    device = enrolled()
    for _ in range(3):
        assert device.send_batch(batch_of(device, sample(1.0), sample(2.0))).status_code == 204
    assert (TelemetryRow.objects.count(), TelemetryBatchRecord.objects.get().num_rows) == (2, 2)


def test_two_devices_may_choose_the_same_batch_id(enrolled: Any) -> None:
    for device in (enrolled("one"), enrolled("two")):
        device.send_batch(batch_of(device, sample(1.0)))
    assert TelemetryRow.objects.count() == 2


def test_a_batch_of_another_device_is_refused(enrolled: Any) -> None:
    mine, theirs = enrolled("mine"), enrolled("theirs")
    response = mine.send_batch(batch_of(theirs, sample(1.0)))
    assert (response.status_code, response.json()["code"]) == (403, "wrong_device")


@pytest.mark.parametrize(
    "bad",
    [
        {"base": "short"},
        {"adapter": "x" * 64},
        {"adapter_name": "x" * 64},
        {"backend": "x" * 33},
        {"value": replace(distribution_of([1.0]), count=2)},
        {"value": replace(distribution_of([1.0]), buckets={"99999": 1})},
        {"value": replace(distribution_of([1.0]), buckets={"x": 1})},
        {"value": replace(distribution_of([1.0]), buckets={"0": 2, "1": -1})},
        {"value": replace(distribution_of([1.0, 2.0]), min=3.0)},
        {"value": replace(distribution_of([1.0]), sum=1e300)},
        {"value": distribution_of([])},
    ],
)
def test_a_bad_sample_refuses_its_whole_batch_by_place(enrolled: Any, bad: dict[str, Any]) -> None:
    device = enrolled()
    response = device.send_batch(batch_of(device, sample(1.0), replace(sample(1.0), **bad)))
    assert (response.status_code, response.json()["code"]) == (422, "bad_sample")
    assert response.json()["detail"].startswith("samples[1]")
    assert not TelemetryRow.objects.exists()
    assert not TelemetryBatchRecord.objects.exists()


def test_minutes_that_can_not_be_are_left_out_and_counted(enrolled: Any) -> None:
    device = enrolled()
    now = int(time.time())
    times = [0, now - 31 * 86400, now + 3600, now + 300, now - 29 * 86400]
    response = device.send_batch(batch_of(device, *(sample(1.0, at=at) for at in times)))
    assert (response.status_code, response.headers["Socle-Samples-Refused"]) == (204, "3")
    assert TelemetryRow.objects.count() == 2


def test_a_gzip_bomb_costs_no_more_than_the_limit(enrolled: Any) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    response = enrolled().call("POST", "telemetry", bomb, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_unpacking_a_bomb_takes_little_memory() -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            gunzip(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_unpacking_stops_at_the_limit() -> None:
    assert gunzip(gzip.compress(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(BodyTooLargeError):
        gunzip(gzip.compress(b"x" * 101), 100)


@pytest.mark.parametrize(
    "body",
    [b"no gzip", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"more", gzip.compress(b"{}") * 2, b""],
    ids=["no gzip", "cut", "more behind", "twice", "empty"],
)
def test_a_damaged_gzip_body_is_refused(enrolled: Any, body: bytes) -> None:
    response = enrolled().call("POST", "telemetry", body, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["code"]) == (400, "bad_body")


def test_a_query_merges_devices_per_step(enrolled: Any, operator: Any) -> None:
    for name, values in (("one", (10.0, 20.0)), ("two", (30.0, 40.0))):
        device = enrolled(name)
        later = sample(100.0, at=MINUTE_S + 60)
        device.send_batch(batch_of(device, sample(*values), later))
    answer = ask(operator).json()
    assert (answer["metric"], answer["unit"], answer["step_s"]) == ("decode_tokens_per_s", "tokens/s", 60)
    (series,) = answer["series"]
    first, second = series["points"]
    assert datetime.fromisoformat(first["at"]).timestamp() == MINUTE_S
    assert (first["count"], first["sum"], first["min"], first["max"], first["avg"]) == (4, 100.0, 10.0, 40.0, 25.0)
    assert (second["count"], second["avg"]) == (2, 100.0)
    assert (series["total"]["count"], series["total"]["max"]) == (6, 100.0)
    assert "rate_per_s" not in first


def test_quantiles_are_within_one_percent(enrolled: Any, operator: Any) -> None:
    values = [1.001**i for i in range(5000)]
    for number in range(5):
        device = enrolled(f"device {number}")
        device.send_batch(batch_of(device, sample(*values[number::5])))
    total = ask(operator).json()["series"][0]["total"]
    assert math.isclose(total["p50"], values[2499], rel_tol=0.0101)
    assert math.isclose(total["p95"], values[4749], rel_tol=0.0101)


def test_steps_and_groups(enrolled: Any, operator: Any) -> None:
    start = MINUTE_S // 300 * 300
    device = enrolled("one", group="home")
    device.send_batch(
        batch_of(
            device,
            sample(1.0, at=start, adapter_name="home", backend="onnx"),
            sample(2.0, at=start + 240, adapter_name="home", backend="reference"),
            sample(3.0, at=start + 300, adapter_name="car", backend="onnx"),
        )
    )
    stranger = enrolled("two")
    stranger.send_batch(batch_of(stranger, sample(9.0, at=start, adapter_name="home")))

    def shape(**query: Any) -> dict[tuple[str, ...], list[float]]:
        answer = ask(operator, **{"from": start, "to": start + 600, "step": 300} | query).json()
        return {tuple(s["group"].values()): [p["sum"] for p in s["points"]] for s in answer["series"]}

    assert shape() == {(): [12.0, 3.0]}
    assert shape(group_by="adapter_name") == {("car",): [3.0], ("home",): [12.0]}
    assert shape(group_by="adapter_name,backend", group="home") == {
        ("car", "onnx"): [3.0],
        ("home", "onnx"): [1.0],
        ("home", "reference"): [2.0],
    }
    assert shape(group_by="device", adapter_name="home") == {
        (key,): values for key, values in sorted([(device.device_id, [3.0]), (stranger.device_id, [9.0])])
    }
    assert shape(device=stranger.device_id) == {(): [9.0]}
    assert shape(step=60, device=device.device_id) == {(): [1.0, 2.0, 3.0]}


def test_counters_have_a_rate(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, sample(120.0, metric=Metric.DECODE_TOKENS)))
    series = ask(operator, metric="decode_tokens").json()["series"][0]
    assert (series["points"][0]["sum"], series["points"][0]["rate_per_s"]) == (120.0, 2.0)
    assert math.isclose(series["total"]["rate_per_s"], 0.2)


def test_the_end_of_the_range_is_not_part_of_it(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, sample(1.0)))
    assert ask(operator, to=MINUTE_S + 60).json()["series"]
    assert ask(operator, **{"from": MINUTE_S - 60, "to": MINUTE_S}).json()["series"] == []


def test_without_a_range_it_is_the_last_hour(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, sample(1.0), sample(2.0, at=MINUTE_S - 7200)))
    series = operator.get("/telemetry", metric="decode_tokens_per_s").json()["series"]
    assert series[0]["total"]["sum"] == 1.0


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"metric": "nonsense"}, 400),
        ({"metric": ""}, 400),
        ({"group_by": "buckets"}, 400),
        ({"step": 0}, 400),
        ({"step": 90}, 400),
        ({"from": "yesterday"}, 400),
        ({"from": "9999999999999"}, 400),
        ({"from": "0001-01-01T00:00:00Z"}, 400),
        ({"unknown": 1}, 400),
        ({"from": MINUTE_S, "to": MINUTE_S}, 422),
        ({"from": "2020-01-01T00:00:00Z"}, 422),
    ],
)
def test_bad_queries_are_refused(operator: Any, query: dict[str, Any], status: int) -> None:
    response = ask(operator, **query)
    assert response.status_code == status
    assert response.json()["code"]


def test_businesses_are_told_apart(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, sample(1.0, business="voice"), sample(3.0, 5.0, business="notes")))
    series = ask(operator, group_by="business").json()["series"]
    assert {one["group"]["business"]: one["total"]["count"] for one in series} == {"voice": 1, "notes": 2}
    assert ask(operator, business="notes").json()["series"][0]["total"]["sum"] == 8.0


def test_totals_are_merged_by_group_and_metric(enrolled: Any) -> None:
    device = enrolled()
    ttft = {"metric": Metric.TTFT_S, "business": "voice"}
    device.send_batch(batch_of(device, sample(1.0, **ttft), sample(2.0, at=MINUTE_S + 60, **ttft), sample(7.0)))
    start = datetime.fromtimestamp(MINUTE_S, UTC)
    query = queries.SeriesQuery(Metric.TTFT_S, start, start + timedelta(minutes=5), group_by=("business",))
    found = queries.totals(query, [Metric.TTFT_S, Metric.DECODE_TOKENS_PER_S])
    assert found["voice"] == {Metric.TTFT_S: distribution_of([1.0, 2.0])}
    assert found[""] == {Metric.DECODE_TOKENS_PER_S: distribution_of([7.0])}


def test_too_many_series_or_rows_are_refused(enrolled: Any, operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, *(sample(1.0, adapter_name=f"adapter-{n}") for n in range(3))))
    monkeypatch.setattr(queries, "MAX_SERIES", 2)
    refused = ask(operator, group_by="adapter_name")
    assert (refused.status_code, refused.json()["code"]) == (422, "query_too_wide")
    assert ask(operator).status_code == 200
    monkeypatch.setattr(queries, "MAX_ROWS", 2)
    assert ask(operator).status_code == 422


def test_strangers_do_not_read_telemetry(operator_with: Any) -> None:
    assert ask(operator_with()).status_code == 401
    assert ask(operator_with("fleet:read")).status_code == 403


def test_rows_beyond_retention_are_deleted(enrolled: Any) -> None:
    device = enrolled()
    device.send_batch(batch_of(device, sample(1.0), sample(2.0, at=MINUTE_S - 86400)))
    with time_machine.travel(datetime.fromtimestamp(MINUTE_S, UTC) + timedelta(days=29, hours=12)):
        assert delete_old() == 1
    assert TelemetryRow.objects.get().sum == 1.0


def test_a_batch_is_stored_with_few_queries(enrolled: Any, django_assert_max_num_queries: Any) -> None:
    device = enrolled()
    body = batch_of(device, *(sample(float(n + 1)) for n in range(400)))
    with django_assert_max_num_queries(20):
        assert device.send_batch(body).status_code == 204


def test_every_metric_is_a_counter_or_a_distribution_with_its_unit() -> None:
    units = {str(metric): (is_counter(metric), unit_of(metric)) for metric in Metric}
    assert units["decode_tokens"] == (True, "tokens")
    assert units["engine_pss_bytes"] == (False, "B")
    assert units["ttft_s"] == (False, "s")
    assert units["requests"] == (True, "")
    assert [name for name, (counter, _) in units.items() if not counter] == [
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "ttft_s",
        "adapter_switch_s",
        "queue_s",
        "inter_token_s",
        "engine_pss_bytes",
        "engine_weights_bytes",
        "engine_scratch_bytes",
        "engine_adapters_bytes",
        "engine_kv_bytes",
        "engine_prefix_cache_bytes",
        "engine_cpu_share",
        "temperature_c",
        "update_pause_s",
    ]
    assert units["temperature_c"] == (False, "°C")


def test_more_than_the_wire_allows_is_refused(enrolled: Any) -> None:
    device = enrolled()
    response = device.call("POST", "telemetry", b" " * ((8 << 20) + 1))
    assert response.status_code == 413
    assert len(encode(batch_of(device, sample(1.0)))) < 1000
