from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.checks import WORKING_MEMORY_BYTES, Room, check_limits, check_room, check_set, memory_bytes
from edge_agent.errors import AdmissionError
from edge_agent.protocol import DesiredState, Limits, ReleaseRef, Window
from engine.artifact import Manifest, read_manifest
from tests.simulators.bundles import make_adapter, make_base


@pytest.fixture
def desired(tmp_path: Path) -> DesiredState:
    base = ReleaseRef("base", "1.0.0", make_base(tmp_path / "base", "base", size_bytes=1000))
    digest = make_adapter(tmp_path / "home", tmp_path / "base", "home", size_bytes=500)
    return DesiredState("dev", 1, base=base, adapters=(ReleaseRef("home", "1.0.0", digest),))


@pytest.fixture
def manifests(desired: DesiredState, tmp_path: Path) -> dict[str, Manifest]:
    return {digest: manifest for manifest, digest in (read_manifest(tmp_path / n) for n in ("base", "home"))}


def room(**changes: int) -> Room:
    return replace(Room(free_disk_bytes=1 << 40, disk_reserve_bytes=0, total_memory_bytes=1 << 40), **changes)


def test_a_good_set_is_admitted(desired: DesiredState, manifests: dict[str, Manifest]) -> None:
    check_set(desired, manifests)
    check_room(desired, manifests, 1502, room())


def test_memory_is_all_files_and_room_to_work(manifests: dict[str, Manifest]) -> None:
    assert memory_bytes(manifests.values()) == WORKING_MEMORY_BYTES + 1000 + 2 + 500


def test_the_reserve_stays_free(desired: DesiredState, manifests: dict[str, Manifest]) -> None:
    check_room(desired, manifests, 1000, room(free_disk_bytes=1100, disk_reserve_bytes=100))
    with pytest.raises(AdmissionError) as caught:
        check_room(desired, manifests, 1000, room(free_disk_bytes=1099, disk_reserve_bytes=100))
    assert caught.value.code == "disk_full"
    assert caught.value.evidence == {"missing_bytes": "1000", "free_bytes": "1099"}


@pytest.mark.parametrize("whose", ["device", "server"])
def test_memory_limits_of_device_and_server_both_hold(desired, manifests, whose: str) -> None:
    needed = memory_bytes(manifests.values())
    limited = replace(desired, limits=Limits(memory_bytes=needed - 1)) if whose == "server" else desired
    with pytest.raises(AdmissionError) as caught:
        check_room(limited, manifests, 0, room(total_memory_bytes=needed - 1) if whose == "device" else room())
    assert caught.value.code == "not_enough_memory"


@pytest.mark.parametrize(
    ("limits", "name", "words"),
    [
        (Limits(memory_bytes=0), "memory_bytes", "0 is not above 0"),
        (Limits(download_bytes_per_s=-1), "download_bytes_per_s", "-1 is not above 0"),
        (Limits(min_decode_tokens_per_s=-0.5), "min_decode_tokens_per_s", "not above 0"),
        (Limits(download_windows=("22:00-06:00 UTC", "at night")), "download_windows", "'at night' is no window"),
        (Limits(download_windows=("22:00-06:00 Europe/Atlantis",)), "download_windows", "knows no time zone"),
    ],
)
def test_a_limit_that_nobody_can_keep_to_is_named(limits: Limits, name: str, words: str) -> None:
    with pytest.raises(AdmissionError, match=words) as caught:
        check_limits(limits)
    assert (caught.value.code, caught.value.evidence) == ("bad_limit", {"limit": name})


def test_good_limits_give_their_windows() -> None:
    windows = ("12:00-13:00 UTC", "22:00-06:00 UTC")
    assert check_limits(Limits(1, 1, 0.1, windows)) == tuple(map(Window.parse, windows))
    assert check_limits(Limits()) == ()


def test_an_adapter_alone_is_refused(desired: DesiredState, manifests: dict[str, Manifest]) -> None:
    with pytest.raises(AdmissionError) as caught:
        check_set(replace(desired, base=None), manifests)
    assert caught.value.code == "no_base"


@pytest.mark.parametrize(
    "sampling", [{"heat": 1}, {"temperature": -1}, {"top_p": 2}, {"stop": [1]}, {"max_tokens": 0}, []]
)
def test_options_that_the_engine_would_refuse_later_are_refused_now(desired, tmp_path: Path, sampling) -> None:
    digest = make_adapter(tmp_path / "odd", tmp_path / "base", "odd", business={"sampling": sampling})
    manifests = {d: m for m, d in (read_manifest(tmp_path / n) for n in ("base", "odd"))}
    with pytest.raises(AdmissionError, match=r"business\.sampling") as caught:
        check_set(replace(desired, adapters=(ReleaseRef("odd", "1.0.0", digest),)), manifests)
    assert caught.value.code == "bad_business_options"
