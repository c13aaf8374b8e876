"""A web server with an index, and the hub's answers, from a server of the tests' own."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.__main__ import main
from service.lifecycle.remote import Remote, open_remote
from service.lifecycle.remote_hub import arranged
from service.lifecycle.remote_source import Entry, Interrupted, RemoteError
from tests.support.stores import WebServer, contents, version_files

SIZE = 4 << 20
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder as its owner has it, without an index."""
    folder = tmp_path / "owners"
    for version in ("1", "2"):
        (folder / "digits" / version).mkdir(parents=True)
        for name, data in version_files(int(version), SIZE).items():
            (folder / "digits" / version / name).write_bytes(data)
    (folder / "digits" / "model.toml").write_text("[batching]")
    (folder / ".hidden").write_text("is not listed")
    return folder


@pytest.fixture
def open_web(web: WebServer, repository: Path, tmp_path: Path) -> Callable[[], Remote]:
    assert main(["index", str(repository)]) == 0

    def opened() -> Remote:
        web.files |= {f"/models/{path}": data for path, data in contents(repository).items()}
        return open_remote(f"{web.url}/models", tmp_path / "cache", 1 << 30, timeout_s=5)

    return opened


def test_an_index_lists_what_is_there_and_is_the_repository(open_web: Callable[[], Remote], repository: Path) -> None:
    listed = json.loads((repository / "index.json").read_text())["files"]
    files = ("golden.npz", "manifest.json", "model.onnx")
    assert sorted(listed) == [*(f"digits/{v}/{file}" for v in (1, 2) for file in files), "digits/model.toml"]
    remote = open_web()
    assert remote.refresh(lambda _, versions: versions) == {}
    assert contents(remote.repository / "digits" / "2") == version_files(2, SIZE)
    assert (remote.repository / "digits" / "model.toml").read_text() == "[batching]"


def test_an_index_written_again_does_not_list_itself(open_web: Callable[[], Remote], repository: Path) -> None:
    before = (repository / "index.json").read_bytes()
    assert main(["index", str(repository)]) == 0
    assert (repository / "index.json").read_bytes() == before


def test_an_index_of_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tmp_path / "nothing")]) == 2
    assert "name the folder" in capsys.readouterr().err


def test_a_cut_answer_is_gone_on_from_by_range(open_web: Callable[[], Remote], web: WebServer) -> None:
    remote = open_web()
    web.cut_after = SIZE // 2
    assert contents(remote.fetch("digits", "1")) == version_files(1, SIZE)
    ranges = [wanted for path, wanted in web.asked if path.endswith("/model.onnx") and wanted]
    assert ranges
    assert all(int(wanted.removeprefix("bytes=").partition("-")[0]) >= 1 << 20 for wanted in ranges)


def test_a_server_without_ranges_sends_it_all_again(open_web: Callable[[], Remote], web: WebServer) -> None:
    remote = open_web()
    web.ranges, web.cut_after = False, SIZE // 2
    assert contents(remote.fetch("digits", "1")) == version_files(1, SIZE)


def test_a_server_that_fails_for_a_moment_is_asked_again(open_web: Callable[[], Remote], web: WebServer) -> None:
    remote = open_web()
    web.failures = 2
    assert remote.list() == {"digits": ["1", "2"]}


def test_the_index_s_digests_hold_for_versions_without_a_manifest(
    open_web: Callable[[], Remote], web: WebServer, repository: Path
) -> None:
    (repository / "bare" / "1").mkdir(parents=True)
    (repository / "bare" / "1" / "model.onnx").write_bytes(b"the graph")
    assert main(["index", str(repository)]) == 0
    remote = open_web()
    web.files["/models/bare/1/model.onnx"] = b"the gruff"
    with pytest.raises(RemoteError, match=r"bare/1: model.onnx: SHA-256"):
        remote.fetch("bare", "1")
    web.files["/models/bare/1/model.onnx"] = b"the graph"


def test_names_that_lead_out_of_the_cache_are_ignored(web: WebServer, tmp_path: Path) -> None:
    digest = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    paths = ["../1/model.onnx", "a/../../1/b", "/etc/1/passwd", "a/1/../../b", "a/1/b\\..\\c", "a/1/.hidden", "a/1/b\0"]
    web.files["/models/index.json"] = json.dumps({"files": dict.fromkeys(paths, digest)}).encode()
    remote = open_remote(f"{web.url}/models", tmp_path / "cache", 1000)
    assert remote.list() == {}


@pytest.mark.parametrize("text", [b"{}", b"<html>", b'{"files": {"a/1/model.onnx": {"bytes": "many"}}}'])
def test_an_index_that_is_none_is_refused(web: WebServer, tmp_path: Path, text: bytes) -> None:
    web.files["/models/index.json"] = text
    with pytest.raises(RemoteError, match=r"index.json: .*`python -m service index DIR` writes it"):
        open_remote(f"{web.url}/models", tmp_path, 1000).list()


def test_a_missing_index_is_named(web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"/models: index.json: .*404 Not Found.*check the URL"):
        open_remote(f"{web.url}/models", tmp_path, 1000).list()


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hub(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """Its answers: a revision, a tree of two files, one of them in LFS, and redirects to where files lie."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    model = b"the graph" * 100_000
    tree = [
        {"type": "directory", "oid": "aa", "size": 0, "path": "onnx"},
        {"type": "file", "oid": "bb", "size": 2, "path": "README.md"},
        {
            "type": "file",
            "oid": "cc",
            "size": len(model),
            "path": "onnx/model.onnx",
            "lfs": {"oid": hashlib.sha256(model).hexdigest(), "size": len(model), "pointerSize": 134},
        },
    ]
    web.files["/api/models/someone/digits/revision/main"] = json.dumps({"id": "someone/digits", "sha": SHA}).encode()
    web.files[f"/api/models/someone/digits/tree/{SHA}"] = json.dumps(tree).encode()
    web.redirects[f"/someone/digits/resolve/{SHA}/onnx/model.onnx"] = "/stored/cc"
    web.files["/stored/cc"] = model
    return web


def test_one_model_of_the_hub_is_its_first_version(hub: WebServer, tmp_path: Path) -> None:
    remote = open_remote("hf://someone/digits", tmp_path, 1 << 30)
    assert remote.list() == {"digits": ["1"]}
    assert contents(remote.fetch("digits", "1")) == {"model.onnx": hub.files["/stored/cc"]}
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_file_of_the_hub_with_another_digest_is_refused(hub: WebServer, tmp_path: Path) -> None:
    hub.files["/stored/cc"] = hub.files["/stored/cc"].replace(b"graph", b"gruff")
    with pytest.raises(RemoteError, match=r"digits/1: model.onnx: SHA-256"):
        open_remote("hf://someone/digits", tmp_path, 1 << 30).fetch("digits", "1")


@pytest.mark.usefixtures("hub")
def test_a_repository_that_the_hub_does_not_show_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"hf://someone/other: .*answered 404; check the URL, and set HF_TOKEN"):
        open_remote("hf://someone/other", tmp_path, 1000).list()


def test_a_hub_that_fails_for_a_moment_is_asked_again(hub: WebServer, tmp_path: Path) -> None:
    hub.failures = 2
    assert open_remote("hf://someone/digits", tmp_path, 1000).list() == {"digits": ["1"]}


def test_a_hub_that_is_not_there_is_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"can be reached from here"):
        open_remote("hf://someone/digits", tmp_path, 1000).list()


def entries(*paths: str) -> dict[str, Entry]:
    return {path: Entry(path, 1) for path in paths}


@pytest.mark.parametrize(
    ("paths", "folder", "expected"),
    [
        (["digits/2/model.onnx", "model.onnx"], "", ["digits/2/model.onnx", "model.onnx"]),
        (["model.onnx", "model.onnx_data", "config.json"], "", ["it/1/model.onnx", "it/1/model.onnx_data"]),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "", ["it/1/model.onnx"]),
        (["model.onnx", "onnx/model.onnx"], "onnx", ["it/1/model.onnx"]),
        (["production/digits/1/model.onnx", "test/digits/1/model.onnx"], "production", ["digits/1/model.onnx"]),
        (["model.safetensors"], "", []),
    ],
)
def test_what_a_repository_of_the_hub_is(paths: list[str], folder: str, expected: list[str]) -> None:
    assert sorted(arranged(entries(*paths), "it", folder)) == expected


@pytest.mark.parametrize("url", ["hf://digits", "hf://someone/digits@", "hf://some one/digits"])
def test_a_url_of_the_hub_that_names_no_repository_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"is not hf://owner/repo"):
        open_remote(url, tmp_path, 1000)
