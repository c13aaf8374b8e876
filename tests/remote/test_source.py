"""Which library class each scheme goes to, with which arguments, and what its errors become. No network."""

import obstore
import pytest
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

from service.lifecycle.remote_source import (
    Changed,
    Entry,
    Interrupted,
    RemoteError,
    explaining,
    object_source,
    open_source,
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The stores that are opened."""
    stores: list[object] = []
    monkeypatch.setattr(
        "service.lifecycle.remote_source.reader", lambda url, store, conditional: stores.append((store, conditional))
    )
    monkeypatch.setattr(
        "service.lifecycle.remote_hub.reader", lambda url, store, conditional: stores.append((store, conditional))
    )
    return stores


@pytest.mark.parametrize(
    ("url", "kind", "prefix", "conditional"),
    [
        ("s3://bucket/some/prefix", S3Store, "some/prefix", True),
        ("gs://bucket/some/prefix", GCSStore, "some/prefix", True),
        ("az://container/some/prefix", AzureStore, "some/prefix", True),
        ("s3://bucket", S3Store, None, True),
    ],
)
def test_a_bucket_s_scheme_goes_to_its_store(
    opened: list[tuple[S3Store, bool]],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    kind: type,
    prefix: str | None,
    conditional: bool,
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    open_source(url, 7.0)
    ((store, sent),) = opened
    assert isinstance(store, kind)
    assert (store.prefix or None, sent) == (prefix, conditional)
    assert store.client_options is not None
    assert store.client_options["read_timeout"] == "7s"
    assert store.retry_config is not None
    assert store.retry_config["max_retries"] == 3


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://host/some/path", "https://host/some/path"),
        ("http://host/some/path", "http://host/some/path"),
        ("hf://owner/repo@v1/folder", "http://127.0.0.1:1/owner/repo/resolve"),
    ],
)
def test_what_http_gives_is_not_asked_by_etag(opened: list[tuple[HTTPStore, bool]], url: str, address: str) -> None:
    open_source(url, 7.0)
    ((store, conditional),) = opened
    assert isinstance(store, HTTPStore)
    assert not conditional
    assert store.url.rstrip("/") == address


@pytest.mark.parametrize(
    ("variables", "plain"),
    [
        ({"AWS_ENDPOINT_URL": "http://store:9000"}, "true"),
        ({"AWS_ENDPOINT_URL": "https://store:9000"}, "false"),
    ],
)
def test_an_endpoint_without_tls_is_taken_as_meant(
    opened: list[tuple[S3Store, bool]], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], plain: str
) -> None:
    monkeypatch.delenv("AWS_METADATA_ENDPOINT")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    open_source("s3://bucket/a", 7.0)
    assert opened[0][0].client_options is not None
    assert opened[0][0].client_options["allow_http"] == plain


def test_an_azure_container_without_its_account_says_what_to_set() -> None:
    with pytest.raises(RemoteError, match=r"Account must be specified; set AZURE_STORAGE_ACCOUNT_NAME and"):
        open_source("az://container/a", 7.0)


def test_a_store_is_listed_and_read_from_an_offset() -> None:
    store = MemoryStore()
    obstore.put(store, "digits/1/model.onnx", b"0123456789")
    source = object_source("memory://", store)
    (entry,) = source.files().values()
    assert (entry.path, entry.size) == ("digits/1/model.onnx", 10)
    assert b"".join(source.read(entry, 4)) == b"456789"
    with pytest.raises(Changed, match=r"has 10 bytes, and was listed with 11"):
        b"".join(source.read(Entry(entry.path, 11, entry.etag), 0))
    obstore.put(store, "digits/1/model.onnx", b"9876543210")
    with pytest.raises(Changed, match=r"is not the file that was listed"):
        b"".join(source.read(entry, 4))


@pytest.mark.parametrize(
    ("raised", "becomes", "said"),
    [
        (exceptions.PreconditionError("412"), Changed, "let uploads end first"),
        (FileNotFoundError("404"), RemoteError, "check the URL"),
        (exceptions.PermissionDeniedError("403"), RemoteError, "set GOOGLE_APPLICATION_CREDENTIALS"),
        (exceptions.UnauthenticatedError("401"), RemoteError, "set GOOGLE_APPLICATION_CREDENTIALS"),
        (exceptions.GenericError("Generic GCS error: 503"), Interrupted, "can be reached"),
    ],
)
def test_an_error_says_what_to_do(raised: Exception, becomes: type[RemoteError], said: str) -> None:
    with pytest.raises(becomes, match=said) as caught, explaining("gs://bucket/a", "digits/1/model.onnx"):
        raise raised
    assert type(caught.value) is becomes
    assert str(caught.value).startswith("gs://bucket/a: digits/1/model.onnx")


def test_an_error_keeps_a_signature_to_itself() -> None:
    told = exceptions.GenericError(
        "Error performing GET https://a.blob.example/c/b?sv=1&sig=secret in 3s - failed\n\nDebug source:\nsecret"
    )
    with pytest.raises(Interrupted) as caught, explaining("az://c/a", "b"):
        raise told
    assert "secret" not in str(caught.value)
    assert "https://a.blob.example/c/b in 3s" in str(caught.value)


def test_what_cannot_be_written_is_not_the_remote_s_fault() -> None:
    with pytest.raises(PermissionError), explaining("gs://bucket/a", "b"):
        raise PermissionError("a folder of ours")
