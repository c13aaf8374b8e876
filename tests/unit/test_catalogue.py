"""The catalogue: what counts as a model and a version, what is whole, what has stopped changing."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.manifest import MANIFEST_FILE, MODEL_FILE, read_manifest
from service.engine.repository import ModelSettings, find_versions, load_version, with_overrides
from service.engine.session import UnservableModel
from service.lifecycle.catalogue import FoundVersion, RepositoryUnreadable, Settling, scan
from service.lifecycle.messages import Overrides
from service.lifecycle.version_policy import Specific
from tests.support.build_models import publish_scores

SETTINGS = ModelSettings("cpu", 2, 64, 128, 1 << 20, None, None, 0.0, by_hand=("engine.threads",))


def put(root: Path, *paths: str) -> Path:
    """A bare model file at each of these."""
    for path in paths:
        (root / path).mkdir(parents=True)
        (root / path / MODEL_FILE).write_bytes(b"a graph")
    return root


def test_a_version_is_a_folder_with_a_positive_number_for_a_name(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/9", "m/10", "m/0", "m/01", "m/-1", "m/1a", "m/.2", "m/²", "m/٣", ".hidden/1")
    put(tmp_path, "empty/notes")
    (tmp_path / "m/3").write_text("a file")
    (tmp_path / "readme").write_text("a file")
    catalogue = scan(tmp_path)
    assert list(catalogue) == ["m"]
    assert catalogue["m"].whole() == ["1", "9", "10"]


def test_links_are_followed_and_links_to_nothing_are_nothing(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "m/1")
    root = put(tmp_path / "models", "own/1")
    (root / "linked").symlink_to(tmp_path / "elsewhere/m")
    (root / "own/2").symlink_to(tmp_path / "elsewhere/m/1")
    (root / "own/3").symlink_to(tmp_path / "nowhere")
    (root / "own/4").symlink_to(root / "own/4")
    assert {name: model.whole() for name, model in scan(root).items()} == {"linked": ["1"], "own": ["1", "2"]}


def test_a_repository_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryUnreadable, match="nowhere: No such file"):
        scan(tmp_path / "nowhere")
    with pytest.raises(UnservableModel, match="nowhere: No such file"):
        find_versions(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_read_is_a_model_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "closed/1", "open/1")
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:  # permissions do not keep root from reading
        if path.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    catalogue = scan(tmp_path)
    assert catalogue["closed"].refused == "its folder cannot be read: Permission denied"
    assert catalogue["open"].whole() == ["1"]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such name")
def test_a_name_that_is_not_utf8_is_refused_in_words_that_can_be_sent(tmp_path: Path) -> None:
    put(tmp_path, os.fsdecode(b"m\xff") + "/1")
    (model,) = scan(tmp_path).values()
    assert (model.name, model.refused) == ("m\\xff", "the name of its folder is not UTF-8")


# ── whole ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def incomplete(root: Path) -> str:
    (listed,) = scan(root)["scores"].versions
    return listed.incomplete


def test_a_version_is_whole_once_every_listed_file_has_its_size(tmp_path: Path) -> None:
    whole = publish_scores(tmp_path / "whole")
    assert incomplete(tmp_path / "whole") == ""
    copied = tmp_path / "models/scores/1"
    copied.mkdir(parents=True)
    root = tmp_path / "models"
    assert incomplete(root) == "model.onnx is missing"
    content = (whole / MODEL_FILE).read_bytes()
    (copied / MODEL_FILE).write_bytes(content[:-1])
    manifest = (whole / MANIFEST_FILE).read_bytes()
    (copied / MANIFEST_FILE).write_bytes(manifest[:100])
    assert incomplete(root).startswith("manifest.json: Input data was truncated")
    (copied / MANIFEST_FILE).write_bytes(manifest)
    for name in sorted(read_manifest(whole).files):
        if name != MODEL_FILE:
            assert incomplete(root) != ""
            shutil.copy(whole / name, copied)
    assert incomplete(root) == f"model.onnx has {len(content) - 1} bytes; manifest.json lists {len(content)}"
    (copied / MODEL_FILE).write_bytes(content)
    assert incomplete(root) == ""


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "n/1")
    os.mkfifo(tmp_path / "m/1" / MANIFEST_FILE)
    os.mkfifo(tmp_path / "n/model.toml")
    catalogue = scan(tmp_path)
    assert catalogue["m"].versions[0].incomplete == "manifest.json is not a file"
    assert catalogue["n"].refused == "model.toml: it is not a file"


# ── settled ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_whatever_is_done_to_a_file_the_fingerprint_changes(tmp_path: Path) -> None:
    version = put(tmp_path, "m/1") / "m/1"
    (version / "data").mkdir()
    weights = version / "data/weights"
    weights.write_bytes(b"12")
    seen = {scan(tmp_path)["m"].versions[0].fingerprint}
    assert seen == {scan(tmp_path)["m"].versions[0].fingerprint}

    def longer() -> None:
        weights.write_bytes(b"123")
        os.utime(weights, ns=(1, 1))

    def touched() -> None:
        os.utime(weights, ns=(2, 2))

    def replaced() -> None:
        other = version.parent / "other"
        other.write_bytes(b"321")
        os.utime(other, ns=(2, 2))
        other.replace(weights)

    def added() -> None:
        (version / "data/more").touch()

    def linked_to_nothing() -> None:
        (version / "data/less").symlink_to("nowhere")

    def removed() -> None:
        weights.unlink()

    changes = (longer, touched, replaced, added, linked_to_nothing, removed)
    for change in changes:
        change()
        seen.add(scan(tmp_path)["m"].versions[0].fingerprint)
    assert len(seen) == 1 + len(changes)


def test_a_version_settles_when_it_has_not_changed_for_long_enough(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "n/1")
    settling = Settling(2.0)
    assert settling.next_at(10.0) is None
    assert settling.look(scan(tmp_path), 10.0) == set()
    assert settling.next_at(10.0) == 12.0
    (tmp_path / "m/1" / MODEL_FILE).write_bytes(b"more of it")
    assert settling.look(scan(tmp_path), 11.0) == set()
    assert settling.look(scan(tmp_path), 12.0) == {("n", "1")}
    assert settling.next_at(12.0) == 13.0
    assert settling.look(scan(tmp_path), 13.0) == {("m", "1"), ("n", "1")}
    assert settling.next_at(13.0) is None
    shutil.rmtree(tmp_path / "n")
    assert settling.look(scan(tmp_path), 14.0) == {("m", "1")}
    put(tmp_path, "n/1")
    assert settling.look(scan(tmp_path), 15.0) == {("m", "1")}


def test_what_is_not_whole_never_settles(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    (tmp_path / "m/1" / MANIFEST_FILE).write_text("{")
    settling = Settling(0.0)
    assert settling.look(scan(tmp_path), 0.0) == set()
    (tmp_path / "m/1" / MANIFEST_FILE).unlink()
    assert settling.look(scan(tmp_path), 1.0) == {("m", "1")}


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bad_settings_file_refuses_its_model_and_no_other(tmp_path: Path) -> None:
    put(tmp_path, "bad/1", "good/1")
    (tmp_path / "bad/model.toml").write_text("[engine]\nthreads = 0\n")
    catalogue = scan(tmp_path)
    assert catalogue["bad"].whole() == ["1"]
    assert catalogue["bad"].refused == "model.toml: engine.threads: Input should be greater than or equal to 1, not 0"
    assert catalogue["good"].refused == ""
    bad, _ = find_versions(tmp_path)
    with pytest.raises(UnservableModel, match=r"model\.toml: engine\.threads"):
        load_version(bad, SETTINGS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff", "it is not UTF-8: invalid start byte at byte 0"), (b"#" * (2 << 20), "it has more than 1048576 bytes")],
    ids=["not UTF-8", "too long"],
)
@pytest.mark.parametrize("name", ["model.toml", "config.pbtxt"])
def test_a_file_that_is_no_text_refuses_its_model(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    put(tmp_path, "m/1")
    (tmp_path / "m" / name).write_bytes(content)
    assert scan(tmp_path)["m"].refused == f"{name}: {reason}"


def test_our_own_file_goes_before_that_of_triton(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    (tmp_path / "m/config.pbtxt").write_text('backend: "python"')
    assert scan(tmp_path)["m"].refused == "config.pbtxt: backend: 'python' is not served here, only 'onnxruntime'"
    before = scan(tmp_path)["m"].digest
    (tmp_path / "m/model.toml").write_text("[versions]\nspecific = [4]\n")
    model = scan(tmp_path)["m"]
    assert (model.refused, model.settings.policy) == ("", Specific(("4",)))
    assert len({before, model.digest, ""}) == 3


def test_ignored_fields_of_triton_are_logged_once_for_each_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(tmp_path, "ours/1")
    for text in ("optimization { } parameters { }", "optimization { } parameters { }", "parameters { }"):
        (tmp_path / "ours/config.pbtxt").write_text(text)
        scan(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "model ours: config.pbtxt: ignored: optimization, parameters",
        "model ours: config.pbtxt: ignored: parameters",
    ]


def test_without_protobuf_the_reason_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "m/1")
    (tmp_path / "m/config.pbtxt").touch()
    monkeypatch.setitem(sys.modules, "service.lifecycle.triton_config", None)
    assert scan(tmp_path)["m"].refused == "config.pbtxt: reading it needs the package protobuf; or write model.toml"


@pytest.mark.parametrize(
    ("text", "version", "refused"),
    [
        ("", "10", ""),
        ("[versions]\nall = true\n", "10", ""),
        ("[versions]\nspecific = [2, 9, 11]\n", "9", ""),
        ("[versions]\nspecific = [11]\n", "10", "its settings ask for versions that are not there: 11"),
    ],
)
def test_the_newest_version_by_policy_is_found(tmp_path: Path, text: str, version: str, refused: str) -> None:
    put(tmp_path, "m/2", "m/9", "m/10")
    (tmp_path / "m/model.toml").write_text(text + "[engine]\nthreads = 3\n")
    path = tmp_path / "m" / version
    assert find_versions(tmp_path) == [FoundVersion("m", version, path, Overrides(threads=3), refused)]


def test_what_a_model_sets_goes_before_the_service_and_counts_as_given_by_hand() -> None:
    settings = with_overrides(SETTINGS, Overrides(max_batch_size=4, threads=1, max_queue_items=8, timeout_ms=10))
    assert (settings.max_batch_size, settings.threads, settings.instances) == (4, 1, None)
    assert (settings.max_queue_items, settings.timeout_ms) == (8, 10)
    assert settings.by_hand == ("engine.threads", "batching.max_batch_size")
    assert with_overrides(SETTINGS, Overrides()) == SETTINGS


def test_a_version_is_loaded_as_its_model_wants_it(tmp_path: Path) -> None:
    publish_scores(tmp_path)
    (tmp_path / "scores/model.toml").write_text(
        "[batching]\nmax_batch_size = 3\nmax_queue_items = 20\nmax_queue_delay_us = 70\n"
        "[engine]\ninstances = 2\nthreads = 1\n[requests]\ntimeout_ms = 400\n"
    )
    (found,) = find_versions(tmp_path)
    loaded = load_version(found, SETTINGS)
    os.close(loaded.arena_fd)
    facts = loaded.facts
    assert (facts.max_batch_size, facts.capacity, facts.instances, facts.threads) == (3, 20, 2, 1)
    assert (facts.timeout_ms, loaded.max_queue_delay_us) == (400, 70)
