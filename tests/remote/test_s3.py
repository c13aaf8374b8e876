"""Downloads from a real server that speaks S3, through a proxy that can cut."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.lifecycle import remote as remote_module
from service.lifecycle.remote import Remote, open_remote
from service.lifecycle.remote_source import Changed, Interrupted, RemoteError
from tests.support.stores import Bucket, Proxy, contents, manifest_of, needs_moto, version_files

pytestmark = needs_moto

Open = Callable[..., Remote]
SIZE = 6 << 20


def newest(_: str, versions: list[str]) -> list[str]:
    return versions[-1:]


def test_models_versions_and_nothing_else_are_listed(bucket: Bucket, open_bucket: Open) -> None:
    for version in ("10", "9", "x", "0", "01"):
        bucket.put(f"models/digits/{version}", version_files(1, 100))
    bucket.put("models/digits", {"model.toml": b"", "notes.txt": b""})
    bucket.put("models/empty", {"model.toml": b""})
    bucket.put("elsewhere/other/1", version_files(1, 100))
    assert open_bucket().list() == {"digits": ["9", "10"]}


def test_a_version_is_brought_with_all_of_its_files(bucket: Bucket, open_bucket: Open) -> None:
    files = version_files(1) | {"labels/more.txt": b"in a folder of its own", "empty": b""}
    bucket.put("models/digits/1", files)
    folder = open_bucket().fetch("digits", "1")
    assert contents(folder) == files
    assert folder.parts[-3:] == ("repository", "digits", "1")


def test_a_version_that_is_there_is_not_asked_for_again(bucket: Bucket, open_bucket: Open, proxy: Proxy) -> None:
    bucket.put("models/digits/1", version_files(1))
    open_bucket().fetch("digits", "1")
    proxy.down = True
    assert open_bucket().fetch("digits", "1").is_dir()


def test_a_cut_connection_is_gone_on_from(bucket: Bucket, open_bucket: Open, proxy: Proxy) -> None:
    files = version_files(1, SIZE)
    bucket.put("models/digits/1", files)
    proxy.cut_after(SIZE // 2)
    assert contents(open_bucket().fetch("digits", "1")) == files
    assert proxy.passed < SIZE * 1.4, "what had arrived was not sent again"


def test_what_arrived_before_an_end_is_gone_on_from_by_the_next(
    bucket: Bucket, open_bucket: Open, proxy: Proxy, tmp_path: Path
) -> None:
    files = version_files(1, SIZE)
    bucket.put("models/digits/1", files)
    fall_silent(open_bucket(), proxy)
    assert not list(tmp_path.glob("cache/*/repository/digits/*"))
    (arrived,) = tmp_path.glob("cache/*/staging/digits/1/model.onnx")
    assert 1 << 20 <= arrived.stat().st_size < SIZE
    assert contents(open_bucket().fetch("digits", "1")) == files
    assert proxy.passed < SIZE * 1.4


def test_what_arrived_of_another_file_is_not_gone_on_from(bucket: Bucket, open_bucket: Open, proxy: Proxy) -> None:
    bucket.put("models/digits/1", version_files(1, SIZE))
    fall_silent(open_bucket(), proxy)
    others = version_files(2, SIZE)
    bucket.put("models/digits/1", others)
    assert contents(open_bucket().fetch("digits", "1")) == others


def test_a_file_that_changes_while_it_comes_is_begun_again(bucket: Bucket, open_bucket: Open, proxy: Proxy) -> None:
    bucket.put("models/digits/1", version_files(1, SIZE))
    others = version_files(2, SIZE)
    proxy.cut_after(SIZE // 2, lambda: bucket.put("models/digits/1", others))
    assert contents(open_bucket().fetch("digits", "1")) == others


def fall_silent(remote: Remote, proxy: Proxy) -> None:
    """A download ends in its middle, and the server is gone; then it is there again."""

    def go() -> None:
        proxy.down = True

    proxy.cut_after(SIZE // 2, go)
    with pytest.raises(Interrupted, match=r"digits/1/model.onnx.*can be reached"):
        remote.fetch("digits", "1")
    proxy.down = False


def test_a_file_with_a_wrong_digest_never_serves_and_is_not_tried_again(
    bucket: Bucket, open_bucket: Open, proxy: Proxy, tmp_path: Path
) -> None:
    files = version_files(1)
    bucket.put("models/digits/1", files | {"model.onnx": files["model.onnx"][:-1] + b"?"})
    remote = open_bucket()
    reason = remote.refresh(newest)["digits", "1"]
    assert "digits/1: model.onnx: SHA-256" in reason
    assert "another version" in reason
    sent = proxy.passed
    assert remote.refresh(newest) == {("digits", "1"): reason}
    assert proxy.passed - sent < 100_000, "the file was not sent again"
    assert not list(tmp_path.glob("cache/*/repository/digits/*"))
    bucket.put("models/digits/1", files)
    assert contents(remote.fetch("digits", "1")) == files, "put right, it is taken"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model.onnx": b"short"}, "digits/1/model.onnx has 5 bytes, not the 1048576 of manifest.json"),
        ({"manifest.json": b"{"}, "digits/1: manifest.json: "),
        ({"manifest.json": manifest_of({"gone.bin": b"x"})}, "gone.bin is listed in manifest.json"),
        ({"manifest.json": manifest_of({"../../1.json": b"x"})}, "../../1.json is listed in manifest.json"),
    ],
)
def test_what_is_not_as_the_manifest_has_it_is_refused_before_the_model_comes(
    bucket: Bucket, open_bucket: Open, proxy: Proxy, wrong: dict[str, bytes], reason: str
) -> None:
    bucket.put("models/digits/1", version_files(1) | wrong)
    with pytest.raises(RemoteError) as raised:
        open_bucket().fetch("digits", "1")
    assert reason in str(raised.value)
    assert proxy.passed < 100_000


def test_one_bad_version_does_not_keep_others_away(bucket: Bucket, open_bucket: Open, tmp_path: Path) -> None:
    bucket.put("models/bad/1", version_files(1) | {"manifest.json": b"{"})
    bucket.put("models/good/1", version_files(1))
    assert list(open_bucket().refresh(newest)) == [("bad", "1")]
    assert [path.name for path in tmp_path.glob("cache/*/repository/good/*")] == ["1"]


def test_a_version_without_a_manifest_is_taken_once_it_is_old_enough(
    bucket: Bucket, open_bucket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("models/bare/1", {"model.onnx": b"the graph", "model.onnx_data": b"its weights"})
    with pytest.raises(Interrupted, match=r"bare/1/ has no manifest.json and was changed within the last 30 s"):
        open_bucket().fetch("bare", "1")
    monkeypatch.setattr(remote_module, "SETTLE_S", -60.0)
    assert contents(open_bucket().fetch("bare", "1")) == {"model.onnx": b"the graph", "model.onnx_data": b"its weights"}


def test_a_version_whose_upload_has_only_begun_is_not_taken(bucket: Bucket, open_bucket: Open) -> None:
    bucket.put("models/digits/1", {"golden.npz": b"first of all"})
    with pytest.raises(Changed, match=r"neither manifest.json nor model.onnx"):
        open_bucket().fetch("digits", "1")


def test_a_model_s_own_files_follow_the_remote(bucket: Bucket, open_bucket: Open) -> None:
    bucket.put("models/digits/1", version_files(1, 100))
    bucket.put("models/digits", {"model.toml": b"[batching]", "config.pbtxt": b"a", "other.txt": b"-"})
    remote, seen = open_bucket(), []

    def wanted(name: str, versions: list[str]) -> list[str]:
        seen.append((remote.repository / name / "model.toml").read_bytes())
        return versions

    remote.refresh(wanted)
    (remote.repository / "digits" / "tuning.json").write_text("ours")
    bucket.put("models/digits", {"model.toml": b"[queue]"})
    bucket.delete("models/digits/config.pbtxt")
    remote.refresh(wanted)
    assert seen == [b"[batching]", b"[queue]"], "they are there when it is asked what is wanted"
    assert sorted(path.name for path in (remote.repository / "digits").iterdir()) == ["1", "model.toml", "tuning.json"]


def test_a_version_that_the_remote_removed_goes(bucket: Bucket, open_bucket: Open) -> None:
    for version in ("1", "2"):
        bucket.put(f"models/digits/{version}", version_files(1, 100))
    remote = open_bucket()
    remote.refresh(lambda _, versions: versions)
    for name in version_files(1, 100):
        bucket.delete(f"models/digits/1/{name}")
    remote.refresh(newest)
    assert [path.name for path in (remote.repository / "digits").iterdir()] == ["2"]


def test_an_empty_listing_takes_nothing_away(bucket: Bucket, open_bucket: Open) -> None:
    bucket.put("models/digits/1", version_files(1, 100))
    remote = open_bucket()
    remote.refresh(newest)
    for name in version_files(1, 100):
        bucket.delete(f"models/digits/1/{name}")
    assert remote.refresh(newest) == {}
    assert (remote.repository / "digits" / "1").is_dir()


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def three(bucket: Bucket) -> None:
    for version in (1, 2, 3):
        bucket.put(f"models/digits/{version}", version_files(version))


def kept(remote: Remote) -> list[str]:
    return sorted(path.name for path in (remote.repository / "digits").iterdir())


@pytest.mark.usefixtures("three")
def test_the_least_recently_used_version_makes_room(open_bucket: Open) -> None:
    remote = open_bucket(max_bytes=5 << 19)  # two and a half
    for version in ("1", "2", "1", "3"):
        remote.fetch("digits", version)
    assert kept(remote) == ["1", "3"]


@pytest.mark.usefixtures("three")
def test_what_is_in_use_stays_and_what_does_not_fit_beside_it_is_refused(open_bucket: Open) -> None:
    remote = open_bucket(max_bytes=5 << 19)
    for version in ("1", "2"):
        remote.fetch("digits", version)
    with pytest.raises(RemoteError, match=r"digits version 3 has \d+ bytes, and remote.max_bytes, 2621440, has no"):
        remote.fetch("digits", "3", keep={("digits", "1"), ("digits", "2")})
    assert kept(remote) == ["1", "2"]


@pytest.mark.usefixtures("three")
def test_a_version_larger_than_the_bound_is_refused_before_it_comes(open_bucket: Open, proxy: Proxy) -> None:
    with pytest.raises(RemoteError, match=r"raise remote.max_bytes"):
        open_bucket(max_bytes=1000).fetch("digits", "3")
    assert proxy.passed < 100_000


@pytest.mark.usefixtures("three")
def test_evicting_spares_what_is_in_use(open_bucket: Open) -> None:
    full = open_bucket()
    for version in ("1", "2", "3"):
        full.fetch("digits", version)
    small = open_bucket(max_bytes=1)
    small.evict(keep={("digits", "2")})
    assert kept(small) == ["2"]


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_that_is_not_there_is_named(proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as raised:
        open_remote("s3://nowhere/models", tmp_path, 1000).list()
    words = "cannot be listed: NoSuchBucket: The specified bucket does not exist; check the URL"
    assert str(raised.value) == f"s3://nowhere/models: {words}"


def test_missing_credentials_are_named(bucket: Bucket, open_bucket: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RemoteError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE"):
        open_bucket().list()


def test_a_public_bucket_needs_none(bucket: Bucket, open_bucket: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("models/digits/1", version_files(1, 100))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert open_bucket().list() == {"digits": ["1"]}


def test_a_version_that_is_not_there_is_named(bucket: Bucket, open_bucket: Open) -> None:
    with pytest.raises(RemoteError, match=r"holds no digits/7/; check the name and the version"):
        open_bucket().fetch("digits", "7")


def test_a_full_disk_or_a_wrong_folder_is_an_error_of_the_version(bucket: Bucket, open_bucket: Open) -> None:
    bucket.put("models/digits/1", version_files(1, 100) | {"a": b"a file", "a/b": b"and a folder of the same name"})
    with pytest.raises(RemoteError, match=r"check the folder of remote.cache_dir"):
        open_bucket().fetch("digits", "1")


def test_a_model_whose_folder_cannot_be_made_does_not_keep_others_away(bucket: Bucket, open_bucket: Open) -> None:
    long = "m" * 300
    bucket.put(f"models/{long}/1", version_files(1, 100))
    bucket.put(f"models/{long}", {"model.toml": b""})
    bucket.put("models/good/1", version_files(1, 100))
    remote = open_bucket()
    assert set(remote.refresh(newest)) == {(long, "1"), (long, "")}
    assert kept_of(remote, "good") == ["1"]


def kept_of(remote: Remote, name: str) -> list[str]:
    return [path.name for path in (remote.repository / name).iterdir()]


def test_a_cache_that_cannot_be_made_is_named(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RemoteError, match=r"cache.*: Not a directory; choose another folder with remote.cache_dir"):
        open_remote("s3://bucket/models", tmp_path / "cache", 1000).refresh(newest)
