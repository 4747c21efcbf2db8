"""Publishing over HTTP, from the announcement to the release."""

from __future__ import annotations

import hashlib
import tarfile

import numpy as np
import pytest

from registry.models import Artifact, Publication, Release, Upload
from registry.queries import named_blobs
from tests.registry.sources import (
    RANK,
    adapter_files,
    adapter_tensors,
    base_files,
    base_tensors,
    entry,
    tar_of,
    zip_of,
)

BASE_PATHS = ["chat_template.jinja", "tokenizer.json", "weights.safetensors"]
ARCHIVES = {
    "tar": tar_of(base_files()),
    "tar.gz": tar_of(base_files(), mode="w:gz"),
    "zip": zip_of(base_files()),
    "tar of ./": tar_of(base_files(), top="./"),
    "tar with one directory": tar_of(base_files(), top="checkpoint/"),
    "zip with one directory": zip_of(base_files(), top="checkpoint/"),
    "tar with junk of macOS": tar_of(base_files() | {"._config.json": b"\0", "__MACOSX/._x.json": b"\0"}),
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_a_base_is_published(publisher, archive) -> None:
    done = publisher.publish_archive(archive, kind="base", name="tiny", version="1.0.0", notes="first")
    assert (done["state"], done["problem"], done["progress"], done["upload"]) == ("published", None, 1.0, None)
    release = publisher.get("/releases/tiny@1.0.0").json()
    assert release["digest"] == done["release"]["digest"]
    assert (release["kind"], release["base"], release["notes"]) == ("base", None, "first")
    assert [file["path"] for file in release["files"]] == [
        "chat_template.jinja",
        "tokenizer.json",
        "weights.safetensors",
    ]
    assert release["size_bytes"] == sum(file["size_bytes"] for file in release["files"])
    assert release["published_by"] == "token:publisher"
    assert release["report"]["architecture"]["hidden_size"] == 32


def test_all_ways_of_packing_give_the_same_digest(publisher) -> None:
    digests = {
        publisher.publish_archive(archive, kind="base", name="tiny", version=f"1.0.{i}")["release"]["digest"]
        for i, archive in enumerate(ARCHIVES.values())
    }
    assert len(digests) == 1


def test_the_report_counts_the_parameters(publisher) -> None:
    publisher.publish_base()
    report = publisher.get("/releases/tiny").json()["report"]
    assert report["num_parameters"] == sum(tensor.size for tensor in base_tensors().values())


def test_an_adapter_is_published_for_its_base(publisher) -> None:
    base = publisher.publish_base()
    done = publisher.publish_adapter(base="tiny@1.0.0")
    assert done["state"] == "published", done["problem"]
    release = publisher.get("/releases/home@1.0.0").json()
    assert release["base"] == base["release"]
    assert release["report"]["modules"] == ["q_proj", "v_proj"]
    assert release["report"]["max_rank"] == RANK


def test_the_manifest_has_the_digest_of_the_release(publisher) -> None:
    release = publisher.publish_base()["release"]
    manifest = publisher.get("/releases/tiny@1.0.0/manifest")
    assert hashlib.sha256(manifest.content).hexdigest() == release["digest"]


def test_only_the_release_stays_in_the_store(publisher, stored) -> None:
    publisher.publish_base()
    publisher.publish_adapter()
    assert set(stored()) == {f"sha256/{sha256[:2]}/{sha256}" for sha256 in named_blobs()}
    assert not Upload.objects.exists()


def test_blobs_have_the_content_that_their_names_say(publisher, blob_dir, stored) -> None:
    publisher.publish_base()
    for name in stored():
        assert hashlib.sha256((blob_dir / name).read_bytes()).hexdigest() == name.rsplit("/", 1)[-1]


BAD_BASES = {
    "not_a_checkpoint": {"README.md": b"nothing here"},
    "unknown_architecture": base_files(config={"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}),
    "missing_tensor": base_files(tensors={k: v for k, v in base_tensors().items() if "up_proj" not in k}),
    "shape_mismatch": base_files(config={"intermediate_size": 64}),
    "not_finite": base_files(
        tensors=base_tensors() | {"model.norm.weight": base_tensors()["model.norm.weight"] * np.inf}
    ),
    "pickle_file": base_files() | {"pytorch_model.bin": b"\x80\x04."},
    "unsupported_tokenizer": {k: v for k, v in base_files().items() if k != "tokenizer.json"},
}
BAD_ADAPTERS = {
    "not_an_adapter": base_files(),
    "wrong_base": adapter_files(
        tensors={n: np.tile(t, (1, 2)) if "lora_A" in n else t for n, t in adapter_tensors().items()}  # hidden size 64
    ),
    "unsupported_peft_option": adapter_files(config={"use_dora": True}),
    "unsupported_peft_option bias": adapter_files(config={"bias": "lora_only"}),
    "unsupported_peft_option modules_to_save": adapter_files(config={"modules_to_save": ["lm_head"]}),
    "no_module_matched": adapter_files(
        tensors={name.replace("self_attn", "cross_attn"): tensor for name, tensor in adapter_tensors().items()}
    ),
    "all_zero": adapter_files(
        tensors={name: tensor * (0 if "lora_B" in name else 1) for name, tensor in adapter_tensors().items()}
    ),
    "missing_tensor": adapter_files(tensors={k: v for k, v in adapter_tensors().items() if "q_proj.lora_B" not in k}),
    "not_finite": adapter_files(tensors={name: tensor * np.nan for name, tensor in adapter_tensors().items()}),
    "pickle_file": adapter_files() | {"adapter_model.bin": b"\x80\x04."},
}
BAD_ARCHIVES = {
    "truncated_archive": tar_of(base_files())[:20_000],
    "truncated_archive between entries": tar_of(base_files()).rstrip(b"\0").ljust(1024, b"\0"),
    "truncated_archive gz": tar_of(base_files(), mode="w:gz")[:-9],
    "truncated_archive zip": zip_of(base_files())[:-30],
    "path_traversal": tar_of(base_files() | {"../escaped.json": b"{}"}),
    "path_traversal absolute": tar_of(base_files() | {"/tmp/escaped.json": b"{}"}),
    "path_traversal zip": zip_of(base_files() | {"a/../../escaped.json": b"{}"}),
    "path_traversal backslash": zip_of(base_files() | {"..\\escaped.json": b"{}"}),
    "unsupported_entry symlink": tar_of(base_files(), extra=[entry("link.json")]),
    "unsupported_entry hard link": tar_of(base_files(), extra=[entry("link.json", tarfile.LNKTYPE)]),
    "unsupported_entry device": tar_of(base_files(), extra=[entry("null.json", tarfile.CHRTYPE)]),
    "duplicate_entry": tar_of({"config.json": b"{}"}, extra=[entry("./config.json", tarfile.REGTYPE)]),
    "unsupported_archive": b"This is no archive at all." * 100,
    "too_large ratio": tar_of({"zeros.json": bytes(80 << 20)}, mode="w:gz"),
    "too_large entries": tar_of({f"{i}.txt": b"" for i in range(4097)}, mode="w:gz"),
}


@pytest.mark.parametrize("case", BAD_BASES)
def test_a_bad_checkpoint_is_refused_and_leaves_nothing(publisher, stored, case) -> None:
    done = publisher.publish_base(files=BAD_BASES[case])
    assert_refused(done, case)
    assert not Artifact.objects.exists()
    assert not Upload.objects.exists()
    assert stored() == []


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_a_bad_adapter_is_refused_and_leaves_nothing(publisher, stored, case) -> None:
    publisher.publish_base()
    before = stored()
    assert_refused(publisher.publish_adapter(files=BAD_ADAPTERS[case]), case)
    assert [artifact.name for artifact in Artifact.objects.all()] == ["tiny"]
    assert stored() == before


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_and_leaves_nothing(publisher, stored, case) -> None:
    done = publisher.publish_archive(BAD_ARCHIVES[case], kind="base", name="tiny", version="1.0.0")
    assert_refused(done, case)
    assert stored() == []


def assert_refused(publication, case) -> None:
    problem = publication["problem"]
    assert (publication["state"], problem["code"]) == ("failed", case.split()[0]), problem
    assert all(problem[part] for part in ("title", "detail", "hint"))
    assert publication["release"] is None
    assert publication["upload"] is None


def test_unpacked_size_is_limited(publisher, settings, stored) -> None:
    archive = zip_of(base_files())
    settings.SOCLE_MAX_UPLOAD_BYTES = len(archive)
    assert_refused(publisher.publish_archive(archive, kind="base", name="tiny", version="1.0.0"), "too_large")
    assert stored() == []


def test_a_refused_version_can_be_published_rightly(publisher) -> None:
    assert publisher.publish_base(files=BAD_BASES["missing_tensor"])["state"] == "failed"
    assert publisher.publish_base()["state"] == "published"


def test_the_same_announcement_finds_the_same_publication(publisher) -> None:
    archive = tar_of(base_files())
    document = {"kind": "base", "name": "tiny", "version": "1.0.0"}
    first, again = (publisher.announce(archive, **document) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    published = publisher.publish_archive(archive, **document)
    after = publisher.announce(archive, **document)
    assert (after.status_code, after.json()["release"]) == (200, published["release"])
    assert Publication.objects.count() == 1


def test_other_content_under_the_same_version_is_refused(publisher) -> None:
    publisher.publish_base()
    refused = publisher.announce(tar_of(base_files(seed=5)), kind="base", name="tiny", version="1.0.0")
    assert_problem(refused, 409, "duplicate_version")


def test_of_two_uploads_for_one_version_the_first_to_finish_wins(publisher) -> None:
    document = {"kind": "base", "name": "tiny", "version": "1.0.0"}
    archives = [tar_of(base_files(seed=seed)) for seed in (1, 2)]
    slow, quick = (publisher.announce(archive, **document).json() for archive in archives)
    for publication, archive in zip((slow, quick), archives, strict=True):
        publisher.patch(publication["upload"]["url"], archive)
    assert publisher.send("POST", f"/publications/{quick['id']}/finish").status_code == 202
    assert_problem(publisher.send("POST", f"/publications/{slow['id']}/finish"), 409, "duplicate_version")
    assert Release.objects.count() == 1


def test_finishing_again_changes_nothing(publisher) -> None:
    done = publisher.publish_base()
    again = publisher.send("POST", f"/publications/{done['id']}/finish")
    assert (again.status_code, again.json()["release"]) == (202, done["release"])


def test_a_failed_publication_cannot_be_finished(publisher) -> None:
    failed = publisher.publish_base(files={"README.md": b""})
    assert_problem(publisher.send("POST", f"/publications/{failed['id']}/finish"), 409, "publication_not_open")


def test_a_name_is_for_one_kind(publisher) -> None:
    publisher.publish_base()
    refused = publisher.announce(tar_of(adapter_files()), kind="adapter", name="tiny", version="2.0.0", base="tiny")
    assert_problem(refused, 409, "kind_conflict")


def test_of_two_kinds_under_one_name_the_first_to_be_published_wins(publisher) -> None:
    publisher.publish_base()
    archives = {"base": tar_of(base_files(seed=3)), "adapter": tar_of(adapter_files())}
    announced = [
        publisher.announce(archives["base"], kind="base", name="home", version="1.0.0").json(),
        publisher.announce(archives["adapter"], kind="adapter", name="home", version="2.0.0", base="tiny").json(),
    ]
    for publication in announced:
        publisher.patch(publication["upload"]["url"], archives[publication["kind"]])
        publisher.send("POST", f"/publications/{publication['id']}/finish")
    first, second = (publisher.get(f"/publications/{publication['id']}").json() for publication in announced)
    assert first["state"] == "published"
    assert (second["state"], second["problem"]["code"]) == ("failed", "kind_conflict")


def test_an_adapter_stays_with_the_base_that_its_alias_meant_at_first(publisher) -> None:
    first = publisher.publish_base()
    publisher.send("PUT", "/artifacts/tiny/aliases/stable", {"version": "1.0.0"})
    archive = tar_of(adapter_files())
    announced = publisher.announce(archive, kind="adapter", name="home", version="1.0.0", base="tiny@stable").json()
    publisher.publish_base(version="2.0.0", files=base_files(seed=9))
    publisher.send("PUT", "/artifacts/tiny/aliases/stable", {"version": "2.0.0"})
    publisher.patch(announced["upload"]["url"], archive)
    publisher.send("POST", f"/publications/{announced['id']}/finish")
    assert publisher.get("/releases/home").json()["base"] == first["release"]


BAD_ANNOUNCEMENTS = {
    "no version": ({"version": "1.0"}, 422, "invalid_version"),
    "build metadata": ({"version": "1.0.0+build"}, 422, "invalid_version"),
    "a bad name": ({"name": "Tiny Model"}, 400, "invalid"),
    "a digest as name": ({"name": "a" * 64}, 400, "invalid"),
    "an unknown kind": ({"kind": "dataset"}, 400, "invalid"),
    "a bad digest": ({"sha256": "abc"}, 400, "invalid"),
    "no bytes": ({"size_bytes": 0}, 400, "invalid"),
    "an unknown field": ({"colour": "red"}, 400, "invalid"),
    "a base for a base": ({"base": "tiny"}, 400, "invalid"),
    "an adapter without base": ({"kind": "adapter"}, 400, "invalid"),
    "an unknown base": ({"kind": "adapter", "base": "nobody@1.0.0"}, 422, "wrong_base"),
    "too many bytes": ({"size_bytes": 10**12}, 413, "too_large"),
}


@pytest.mark.parametrize("case", BAD_ANNOUNCEMENTS)
def test_a_bad_announcement_is_refused(publisher, case) -> None:
    change, status, code = BAD_ANNOUNCEMENTS[case]
    document = {"kind": "base", "name": "tiny", "version": "1.0.0"} | change
    assert_problem(publisher.announce(b"x", **document), status, code)
    assert not Publication.objects.exists()


def test_an_adapter_is_no_base(publisher) -> None:
    publisher.publish_base()
    publisher.publish_adapter()
    refused = publisher.announce(b"x", kind="adapter", name="car", version="1.0.0", base="home")
    assert_problem(refused, 422, "wrong_base")


def assert_problem(response, status, code) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"], problem["status"]) == (status, code, status), problem
    assert response["Content-Type"] == "application/problem+json"
    assert problem["detail"]
