"""A server that speaks S3, a bucket for each test, and an environment that leads nowhere else."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from service.lifecycle.remote import Remote, open_remote
from tests.support.stores import Bucket, Proxy, WebServer, running_moto, running_proxy, running_web_server

_numbers = count()


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of this machine, and no service of its cloud that might have some, are asked."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("service.lifecycle.download._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("service.lifecycle.remote_source._FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="session")
def moto() -> Iterator[int]:
    with running_moto() as port:
        yield port


@pytest.fixture
def proxy(moto: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the code under test and moto."""
    with running_proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        yield proxy


@pytest.fixture
def bucket(moto: int, proxy: Proxy) -> Bucket:
    made = Bucket(moto, f"bucket-{next(_numbers)}")
    made.create()
    return made


@pytest.fixture
def open_bucket(bucket: Bucket, tmp_path: Path) -> Callable[..., Remote]:
    def opened(max_bytes: int = 1 << 30) -> Remote:
        return open_remote(f"s3://{bucket.name}/models", tmp_path / "cache", max_bytes, timeout_s=5)

    return opened


@pytest.fixture
def web() -> Iterator[WebServer]:
    with running_web_server() as server:
        yield server
