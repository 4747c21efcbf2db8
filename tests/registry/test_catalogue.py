"""Looking around in the catalogue, and the little that may change in it."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry import queries
from registry.errors import ReleaseNotFoundError, ReleaseYankedError
from registry.models import Publication, Release
from registry.urls import urlpatterns
from tests.registry.releases import put_adapter, put_base


@pytest.fixture
def catalogue(publisher, tmp_path):
    """Two bases of different content, one of them under a second name too, and three adapters."""
    put_base(tmp_path, "tiny@1.0.0")
    put_base(tmp_path, "tiny@2.0.0", content="other")
    put_base(tmp_path, "copy@1.0.0")
    put_adapter(tmp_path, "home@1.0.0", "tiny@1.0.0")
    put_adapter(tmp_path, "home@1.1.0-rc.1", "tiny@1.0.0", content="changed")
    put_adapter(tmp_path, "car@1.0.0", "tiny@2.0.0")
    return publisher


def refs(response) -> list[str]:
    assert response.status_code == 200, response.content
    return [f"{release['name']}@{release['version']}" for release in response.json()["results"]]


def assert_problem(response, status, code) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.content
    assert response.json()["hint"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["car@1.0.0", "home@1.1.0-rc.1", "home@1.0.0", "copy@1.0.0", "tiny@2.0.0", "tiny@1.0.0"]),
        ({"kind": "base"}, ["copy@1.0.0", "tiny@2.0.0", "tiny@1.0.0"]),
        ({"name": "home"}, ["home@1.1.0-rc.1", "home@1.0.0"]),
        ({"search": "HOM rc"}, ["home@1.1.0-rc.1"]),
        ({"search": "nothing"}, []),
        ({"state": "yanked"}, []),
        ({"fits": "tiny@1.0.0"}, ["home@1.1.0-rc.1", "home@1.0.0"]),
        ({"fits": "copy"}, ["home@1.1.0-rc.1", "home@1.0.0"]),
        ({"fits": "tiny"}, ["car@1.0.0"]),
    ],
)
def test_releases_are_listed_newest_first(catalogue, query, expected) -> None:
    assert refs(catalogue.get("/releases", **query)) == expected


def test_lists_come_in_pages(catalogue) -> None:
    page = catalogue.get("/releases", limit="4").json()
    rest = catalogue.client.get(page["next"]).json()
    assert len(page["results"]) == 4
    assert [release["name"] for release in rest["results"]] == ["tiny", "tiny"]
    assert rest["next"] is None


@pytest.mark.parametrize("query", [{"kind": "dataset"}, {"state": "gone"}])
def test_a_bad_filter_is_refused(catalogue, query) -> None:
    assert catalogue.get("/releases", **query).status_code == 400


@pytest.mark.parametrize(
    ("ref", "version"),
    [("tiny@1.0.0", "1.0.0"), ("tiny", "2.0.0"), ("home", "1.0.0"), ("home@1.1.0-rc.1", "1.1.0-rc.1")],
)
def test_references_find_their_release(catalogue, ref, version) -> None:
    found = catalogue.get(f"/releases/{ref}").json()
    assert found["version"] == version
    assert catalogue.get(f"/releases/{found['digest']}").json()["digest"] == found["digest"]


@pytest.mark.parametrize("ref", ["nobody", "tiny@3.0.0", "tiny@stable", "0" * 64, "tiny@", "@1.0.0", "a b", "tiny%00"])
def test_unknown_references_are_not_found(catalogue, ref) -> None:
    assert_problem(catalogue.get(f"/releases/{ref}"), 404, "release_not_found")


def test_a_reference_of_the_other_kind_is_not_found(catalogue) -> None:
    with pytest.raises(ReleaseNotFoundError):
        queries.resolve_release("home", kind="base")


def test_aliases_move_and_go(catalogue) -> None:
    path = "/artifacts/tiny/aliases/stable"
    assert catalogue.send("PUT", path, {"version": "1.0.0"}).status_code == 201
    assert catalogue.get("/releases/tiny@stable").json()["version"] == "1.0.0"
    assert catalogue.send("PUT", path, {"version": "2.0.0"}).status_code == 200
    release = catalogue.get("/releases/tiny@stable").json()
    assert (release["version"], release["aliases"]) == ("2.0.0", ["stable"])
    assert [alias["name"] for alias in catalogue.get("/artifacts/tiny/aliases").json()] == ["stable"]
    assert catalogue.get(path).json()["updated_by"] == "token:publisher"
    assert catalogue.send("DELETE", path).status_code == 204
    assert_problem(catalogue.get(path), 404, "alias_not_found")
    assert_problem(catalogue.send("DELETE", path), 404, "alias_not_found")


@pytest.mark.parametrize(
    ("alias", "version", "status", "code"),
    [
        ("stable", "3.0.0", 404, "release_not_found"),
        ("stable", "newest", 422, "invalid_version"),
        ("1.0.0", "1.0.0", 422, "invalid_alias"),
        ("Sta ble", "1.0.0", 422, "invalid_alias"),
    ],
)
def test_a_bad_alias_is_refused(catalogue, alias, version, status, code) -> None:
    assert_problem(catalogue.send("PUT", f"/artifacts/tiny/aliases/{alias}", {"version": version}), status, code)


def test_a_yanked_release_is_found_by_digest_alone(catalogue, stored) -> None:
    before = stored()
    catalogue.send("PUT", "/artifacts/tiny/aliases/canary", {"version": "2.0.0"})
    answer = catalogue.send("POST", "/releases/tiny@2.0.0/yank", {"reason": "answers in verse"})
    yanked = answer.json()
    assert (answer.status_code, yanked["state"], yanked["yank_reason"]) == (200, "yanked", "answers in verse")
    assert queries.resolve_release(yanked["digest"]).is_yanked
    assert queries.resolve_release("tiny").version == "1.0.0"
    for ref in ("tiny@2.0.0", "tiny@canary"):
        with pytest.raises(ReleaseYankedError, match="answers in verse"):
            queries.resolve_release(ref)
    assert catalogue.get("/releases/tiny@2.0.0").json()["state"] == "yanked"
    assert refs(catalogue.get("/releases", state="yanked")) == ["tiny@2.0.0"]
    assert stored() == before
    assert_problem(catalogue.send("PUT", "/artifacts/tiny/aliases/a", {"version": "2.0.0"}), 409, "release_yanked")
    refused = catalogue.announce(b"x", kind="adapter", name="new", version="1.0.0", base="tiny@2.0.0")
    assert_problem(refused, 422, "wrong_base")


def test_yanking_again_keeps_the_first_reason(catalogue) -> None:
    for reason in ("first", "second"):
        answer = catalogue.send("POST", "/releases/home@1.0.0/yank", {"reason": reason})
    assert answer.json()["yank_reason"] == "first"


def test_a_yanked_version_is_not_free(catalogue) -> None:
    catalogue.send("POST", "/releases/tiny@1.0.0/yank", {"reason": "bad"})
    refused = catalogue.announce(b"other", kind="base", name="tiny", version="1.0.0")
    assert_problem(refused, 409, "duplicate_version")


def test_with_the_same_content_twice_a_digest_means_the_one_that_is_not_yanked(catalogue) -> None:
    digest = queries.resolve_release("copy@1.0.0").digest
    catalogue.send("POST", "/releases/tiny@1.0.0/yank", {"reason": "bad"})
    assert queries.resolve_release(digest).ref == "copy@1.0.0"


def test_of_a_release_only_the_notes_change(catalogue) -> None:
    before = catalogue.get("/releases/home@1.0.0").json()
    changed = catalogue.send("PATCH", "/releases/home@1.0.0", {"notes": "for kitchens"}).json()
    assert changed == before | {"notes": "for kitchens"}
    for field in set(before) - {"notes"}:
        refused = catalogue.send("PATCH", "/releases/home@1.0.0", {"notes": "x", field: "changed"})
        assert refused.status_code == 400
    assert catalogue.send("DELETE", "/releases/home@1.0.0").status_code == 405
    assert catalogue.send("PUT", "/releases/home@1.0.0", before).status_code == 405


def test_artifacts_tell_their_newest_version(catalogue) -> None:
    catalogue.send("POST", "/releases/car@1.0.0/yank", {"reason": "bad"})
    found = catalogue.get("/artifacts").json()["results"]
    assert [(a["name"], a["newest_version"], a["num_releases"]) for a in found] == [
        ("car", None, 1),
        ("copy", "1.0.0", 1),
        ("home", "1.0.0", 2),
        ("tiny", "2.0.0", 2),
    ]
    assert [a["name"] for a in catalogue.get("/artifacts", kind="base").json()["results"]] == ["copy", "tiny"]
    assert [a["name"] for a in catalogue.get("/artifacts", search="OM").json()["results"]] == ["home"]


def test_an_artifact_is_described(catalogue) -> None:
    answer = catalogue.send("PATCH", "/artifacts/home", {"description": "Lights and heating."})
    assert answer.json()["description"] == "Lights and heating."
    assert refs(catalogue.get("/releases", search="heating")) == ["home@1.1.0-rc.1", "home@1.0.0"]
    assert_problem(catalogue.get("/artifacts/nobody"), 404, "artifact_not_found")


def test_publications_are_listed(catalogue) -> None:
    catalogue.publish_base("broken", files={"README.md": b""})
    found = catalogue.get("/publications", state="failed").json()["results"]
    assert [(p["name"], p["problem"]["code"]) for p in found] == [("broken", "not_a_checkpoint")]
    assert len(catalogue.get("/publications").json()["results"]) == 7


def test_publications_in_progress_are_those_without_an_end(catalogue) -> None:
    waiting = catalogue.announce(b"x", kind="base", name="next", version="1.0.0").json()
    assert [str(p.pk) for p in queries.publications_in_progress()] == [waiting["id"]]


def test_lineage_leads_from_bases_to_adapters(catalogue) -> None:
    found = {base.ref: [adapter.ref for adapter in base.lineage_adapters] for base in queries.lineage()}
    assert found == {
        "copy@1.0.0": [],
        "tiny@2.0.0": ["car@1.0.0"],
        "tiny@1.0.0": ["home@1.1.0-rc.1", "home@1.0.0"],
    }


READS = {
    "releases": lambda: [(r.ref, r.base and r.base.ref, list(r.aliases.all()), r.kind) for r in queries.releases()],
    "artifacts": lambda: [[alias.release.version for alias in a.aliases.all()] for a in queries.artifacts()],
    "lineage": lambda: [[(a.ref, a.base.ref) for a in base.lineage_adapters] for base in queries.lineage()],
    "publications": lambda: [(p.release.ref, p.base and p.base.ref, p.upload) for p in queries.publications()],
    "fitting": lambda: [r.ref for r in queries.adapters_fitting(Release.objects.first())],
}


@pytest.mark.parametrize("read", READS)
def test_reads_take_the_same_number_of_queries_for_more_rows(publisher, tmp_path, read) -> None:
    put_base(tmp_path, "tiny@1.0.0")
    put_adapter(tmp_path, "home@1.0.0", "tiny@1.0.0")
    few = _count_queries(READS[read])
    put_adapter(tmp_path, "car@1.0.0", "tiny@1.0.0", content="changed")
    put_base(tmp_path, "tiny@2.0.0", content="other")
    assert _count_queries(READS[read]) == few


def _count_queries(read) -> int:
    with CaptureQueriesContext(connection) as captured:
        read()
    return len(captured)


# Method, path, the scope that it takes.
DOORS = [
    ("GET", "/publications", "registry:read"),
    ("POST", "/publications", "registry:publish"),
    ("GET", "/publications/{publication}", "registry:read"),
    ("POST", "/publications/{publication}/finish", "registry:publish"),
    ("GET", "/uploads/{upload}", "registry:publish"),
    ("HEAD", "/uploads/{upload}", "registry:publish"),
    ("PATCH", "/uploads/{upload}", "registry:publish"),
    ("GET", "/releases", "registry:read"),
    ("GET", "/releases/tiny", "registry:read"),
    ("PATCH", "/releases/tiny", "registry:publish"),
    ("GET", "/releases/tiny/manifest", "registry:read"),
    ("POST", "/releases/tiny/yank", "registry:admin"),
    ("GET", "/artifacts", "registry:read"),
    ("GET", "/artifacts/tiny", "registry:read"),
    ("PATCH", "/artifacts/tiny", "registry:publish"),
    ("GET", "/artifacts/tiny/aliases", "registry:read"),
    ("GET", "/artifacts/tiny/aliases/stable", "registry:read"),
    ("PUT", "/artifacts/tiny/aliases/stable", "registry:publish"),
    ("DELETE", "/artifacts/tiny/aliases/stable", "registry:publish"),
]
SCOPES = {"registry:read", "registry:publish", "registry:admin", "fleet:read", "fleet:write", "telemetry:read"}


@pytest.mark.parametrize("door", DOORS)
def test_strangers_are_refused(publisher, operator_with, client, tmp_path, door) -> None:
    method, path, scope = door
    put_base(tmp_path, "tiny@1.0.0")
    open_one = publisher.announce(b"x", kind="base", name="next", version="1.0.0").json()
    path = path.format(publication=open_one["id"], upload=open_one["upload"]["url"].rsplit("/", 1)[-1])
    before = list(Release.objects.values()), list(Publication.objects.values())
    stranger = operator_with(*SCOPES - {scope}, name="stranger")
    assert stranger.send(method, path, {}).status_code == 403
    assert client.generic(method, f"/api/v1{path}").status_code == 401
    assert (list(Release.objects.values()), list(Publication.objects.values())) == before
    allowed = operator_with(scope, name="allowed")
    assert allowed.send(method, path, {}).status_code not in (401, 403)


def test_every_method_of_every_view_stands_in_the_table_of_doors() -> None:
    methods = sorted(method for pattern in urlpatterns for method in pattern.callback.view_class.required_scopes)
    assert methods == sorted(method for method, _, _ in DOORS if method != "HEAD")
