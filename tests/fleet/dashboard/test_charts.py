from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from edge_agent.protocol import Metric, Sample, TelemetryBatch, distribution_of
from fleet.dashboard.charts import MAX_LINES, RANGES
from fleet.rollouts.models import Rollout
from fleet.telemetry.actions import ingest
from tests.fleet.dashboard.small_fleet import enrol

pytestmark = pytest.mark.django_db


def chart(client, name: str, query: str = ""):
    response = client.get(f"/charts/{name}?{query}")
    assert response.status_code == 200
    return response.json()


def minute_s(ago: int = 0) -> int:
    return int(timezone.now().timestamp()) // 60 * 60 - 60 * ago


def tell(device, metric: Metric, *values: float, ago: int = 1, **labels: str) -> None:
    sample = Sample(minute_s(ago), metric, distribution_of(values), **labels)
    batch_id = f"{metric}-{ago}-{'-'.join(labels.values())}"
    ingest(device=device, batch=TelemetryBatch(batch_id, device.pk, (sample,)))


def known(line) -> list[float]:
    return [value for value in line["values"] if value is not None]


def test_lines_are_medians_per_adapter(colleague):
    device = enrol("one")
    tell(device, Metric.DECODE_TOKENS_PER_S, 100, 150, 200, adapter_name="home")
    tell(device, Metric.DECODE_TOKENS_PER_S, 90)
    document = chart(colleague, "speed")
    assert [line["label"] for line in document["series"]] == ["base model", "home"]
    [base], [home] = map(known, document["series"])
    assert base == pytest.approx(90, rel=0.01)
    assert home == pytest.approx(150, rel=0.01)
    assert document["unit"] == "tokens/s"


def test_values_come_in_the_unit_that_the_axis_names(colleague):
    device = enrol("one")
    tell(device, Metric.ENGINE_PSS_BYTES, 300 << 20, 200 << 20)
    tell(device, Metric.TTFT_S, 0.25, adapter_name="home")
    memory, ttft = chart(colleague, "memory"), chart(colleague, "ttft")
    assert (memory["unit"], memory["series"][0]["label"], known(memory["series"][0])) == ("MiB", "one", [300])
    assert (ttft["unit"], known(ttft["series"][0])) == ("ms", [pytest.approx(250, rel=0.01)])


def test_a_minute_without_requests_is_a_gap(colleague):
    device = enrol("one")
    tell(device, Metric.DECODE_TOKENS_PER_S, 100, ago=5, adapter_name="home")
    tell(device, Metric.DECODE_TOKENS_PER_S, 100, ago=3, adapter_name="home")
    document = chart(colleague, "speed", "range=15m")
    [line] = document["series"]
    start = document["at"].index(minute_s(5))
    assert [value is None for value in line["values"][start : start + 3]] == [False, True, False]


@pytest.mark.parametrize("time_range", RANGES, ids=lambda time_range: time_range.name)
def test_each_range_has_an_even_grid_that_holds_the_newest_minute(colleague, time_range):
    tell(enrol("one"), Metric.DECODE_TOKENS_PER_S, 100, ago=0, adapter_name="home")
    document = chart(colleague, "speed", f"range={time_range.name}")
    steps = {after - before for before, after in zip(document["at"], document["at"][1:], strict=False)}
    assert steps == {time_range.step_s}
    assert document["end"] - document["start"] == pytest.approx(time_range.span.total_seconds())
    assert known(document["series"][0])


def test_a_device_s_charts_hold_its_own_figures(colleague):
    one, other = enrol("one"), enrol("other")
    tell(one, Metric.ENGINE_PSS_BYTES, 100 << 20)
    tell(other, Metric.ENGINE_PSS_BYTES, 200 << 20)
    document = chart(colleague, "memory", f"device={one.pk}")
    assert [(line["label"], known(line)) for line in document["series"]] == [("one", [100])]


def test_only_the_highest_lines_are_drawn_and_the_others_counted(colleague):
    for number in range(MAX_LINES + 2):
        tell(enrol(f"d{number}"), Metric.ENGINE_PSS_BYTES, (100 + number) << 20)
    document = chart(colleague, "memory")
    assert [line["label"] for line in document["series"]] == [f"d{n}" for n in range(2, MAX_LINES + 2)]
    assert document["num_left_out"] == 2


def test_rollouts_are_marked_where_they_began(colleague, fleet):
    marks = chart(colleague, "speed")["marks"]
    assert [mark["label"] for mark in marks] == ["Smart home 1.1", "First models"]
    assert marks[0]["at"] == pytest.approx(Rollout.objects.get(pk=fleet.running.pk).started_at.timestamp())
    of_a_car = chart(colleague, "speed", f"device={fleet.devices['car-07'].pk}")["marks"]
    assert [mark["label"] for mark in of_a_car] == ["First models"]
    Rollout.objects.update(started_at=timezone.now() - timedelta(hours=2))
    assert chart(colleague, "speed")["marks"] == []


def test_no_telemetry_is_no_lines(colleague):
    assert chart(colleague, "speed")["series"] == []


def test_an_unknown_chart_is_not_found(colleague):
    assert colleague.get("/charts/nonsense").status_code == 404
