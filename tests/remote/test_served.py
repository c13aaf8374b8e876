"""A server started on a URL, as an operator starts it, and one that cannot start."""

import os
from pathlib import Path

import httpx
import pytest

from service.lifecycle.remote_source import RemoteError
from service.lifecycle.remote_start import newest, settled_repository
from service.settings import Settings, SettingsError, read_settings
from tests.support.server import ROOT, running_server, starting_server
from tests.support.stores import Bucket, Proxy, contents, needs_moto, version_files

MNIST = ROOT / "models" / "mnist" / "3"
FAST_START = ("--port", "0", "--engine.tune-budget-s", "0", "--frontends", "1")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@needs_moto
def test_a_server_answers_from_a_bucket_and_again_when_that_is_out_of_reach(
    bucket: Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    bucket.put("models/mnist/3", contents(MNIST))
    bucket.put("models/mnist/2", version_files(1))
    flags = (*FAST_START, "--repository", f"s3://{bucket.name}/models", "--remote.cache-dir", str(tmp_path))
    image = (MNIST / "example.png").read_bytes()
    for down in (False, True):
        proxy.down = down
        with running_server(*flags, environment=environment()) as server:
            answer = httpx.post(
                f"{server.url}/predict/mnist", content=image, headers={"content-type": "image/png"}, trust_env=False
            )
            assert answer.json()["predictions"][0]["label"] == "7"
            assert answer.json()["version"] == "3"
            assert ("what was downloaded before is served" in server.log()) == down
    assert not list(tmp_path.glob("*/repository/mnist/2")), "only what is served is brought"


@needs_moto
@pytest.mark.usefixtures("proxy")
def test_a_server_does_not_start_on_a_bucket_that_is_not_there(tmp_path: Path) -> None:
    flags = (*FAST_START, "--repository", "s3://nowhere/models", "--remote.cache-dir", str(tmp_path))
    with starting_server(*flags, environment=environment()) as (server, _):
        assert server.wait() == 1
        assert "s3://nowhere/models: cannot be listed: NoSuchBucket" in server.log()


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.lifecycle.remote_start.importlib.util.find_spec", lambda _: None)
    settings = read_settings(["--repository", "s3://models/production"], "serve")
    with pytest.raises(RemoteError, match=r"pip install 'shoal\[cpu,remote\]'"):
        settled_repository(settings)


def test_a_folder_stays_what_it_is() -> None:
    settings = Settings(repository=Path("models"))
    assert settings.remote.url is None
    assert settled_repository(settings) is settings


def test_a_url_becomes_the_folder_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = read_settings(["--repository", "s3://models/production"], "serve")
    assert settings.remote.url == "s3://models/production"
    assert settings.repository.name == "repository"
    assert settings.repository.parent.parent == tmp_path / "shoal"
    assert settings.repository.parent.name.startswith("production-")


def test_every_source_of_settings_takes_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shoal.toml").write_text(f'repository = "gs://a/b"\n[remote]\ncache_dir = "{tmp_path}"\n')
    in_file = read_settings(["--config", str(tmp_path / "shoal.toml")], "serve")
    assert in_file.remote.url == "gs://a/b"
    assert in_file.repository.is_relative_to(tmp_path)
    monkeypatch.setenv("SHOAL_REPOSITORY", "az://a/b")
    assert read_settings([], "serve").remote.url == "az://a/b"
    monkeypatch.delenv("SHOAL_REPOSITORY")
    assert read_settings(["--remote.url", "hf://a/b"], "serve").repository.name == "repository"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--repository", "ftp://host/models"], "expected a folder, or a URL that starts with one of s3://"),
        (["--repository", "s3://key:secret@bucket/a"], "has no credentials and no query, not 'bucket/a'"),
        (["--repository", "https://host/models?sig=secret"], "not 'https://host/models'"),
        (["--repository", "s3://"], "expected a folder"),
        (["--repository", "s3://a/b", "--remote.url", "s3://a/c"], "are two places; give one"),
        (["--repository", "models", "--remote.url", "s3://a/c"], "exclude each other; give one"),
        (["--repository", "s3://a/b", "--remote.max-bytes", "0"], "--remote.max-bytes"),
    ],
)
def test_what_is_no_repository_is_refused(flags: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings(flags, "serve")
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_newest_of_the_named_models_are_brought() -> None:
    versions = ["1", "2", "10"]
    assert newest((), 1)("digits", versions) == ["10"]
    assert newest((), 2)("digits", versions) == ["2", "10"]
    assert newest((), 0)("digits", versions) == []
    assert list(newest(("other",), 2)("digits", versions)) == []
