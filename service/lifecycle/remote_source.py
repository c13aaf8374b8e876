"""Where a remote repository's files are, and how they are read: one `Source`, whatever the URL's scheme.

    s3:// gs:// az://    the objects below the prefix
    https:// http://     the files that `index.json` lists (remote_index.py)
    hf://owner/repo      the files of one commit of a repository of Hugging Face's (remote_hub.py)

obstore does the requests, and repeats them where that is safe; who it is to the other side it finds in the environment.
It runs threads: never import it in a process that forks afterwards. Why obstore: docs/adr/0019.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

CHUNK_BYTES = 1 << 20

_RETRIES = 3
_FIRST_WAIT_S = 0.2
_MOST_TEXT = 300  # characters of another server's words
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true where it is public",
    "hf": "HF_TOKEN",
}
# An answer, or a service of the cloud that would give credentials and does not, or an account that is nowhere named.
_NO_CREDENTIALS = re.compile(
    r"403 Forbidden|401 Unauthorized|must be specified|latest/api/token|computeMetadata|metadata/identity"
)


class RemoteError(Exception):
    """The remote, or what it gave, cannot be used. The message names the URL, what is wrong and what to do."""

    def __init__(self, url: str, what: str, advice: str) -> None:
        super().__init__(f"{url}: {what}; {advice}")


class Interrupted(RemoteError):
    """Nothing is wrong that another attempt may not find right."""


class Changed(RemoteError):
    """A file is not the one that was listed."""


class Entry(Struct, frozen=True):
    """A file at the remote.

    path          as its server names it, below the URL
    etag, sha256  "" where they are not told
    modified_unix_s   seconds since 1970; 0 where files change together or not at all
    """

    path: str
    size: int
    etag: str = ""
    sha256: str = ""
    modified_unix_s: float = 0.0

    def is_same(self, other: "Entry") -> bool:
        """The same bytes, as far as the server tells."""
        return (self.size, self.etag, self.sha256) == (other.size, other.etag, other.sha256)


@dataclass(frozen=True)
class Source:
    """`files` lists, by path in the layout of a repository; `read` gives a file's bytes from an offset on.

    Both raise RemoteError, `read` Interrupted where it is worth going on from what has arrived, Changed where the file
    is another than the listed one.
    """

    url: str
    files: Callable[[], dict[str, Entry]]
    read: Callable[[Entry, int], Iterator[bytes | memoryview]]


def open_source(url: str, timeout_s: float) -> Source:
    """Asks nothing of the remote yet. Raises RemoteError."""
    try:
        from obstore.store import HTTPStore, from_url
    except ModuleNotFoundError as error:
        raise RemoteError(url, "the extra `remote` is not installed", "pip install 'shoal[cpu,remote]'") from error
    from service.lifecycle.remote_hub import open_hub
    from service.lifecycle.remote_index import read_index

    scheme = url.partition("://")[0]
    if scheme == "hf":
        return open_hub(url, timeout_s)
    with explaining(url, "cannot be opened"):
        if scheme in ("https", "http"):
            store: ObjectStore = HTTPStore.from_url(
                url, client_options=client_options(timeout_s, plain=scheme == "http"), retry_config=retries()
            )
            return Source(url, lambda: read_index(url, store), reader(url, store, conditional=False))
        plain = _has_plain_endpoint()
        store = from_url(url, client_options=client_options(timeout_s, plain=plain), retry_config=retries())
    return object_source(url, store)


def object_source(url: str, store: "ObjectStore") -> Source:
    return Source(url, lambda: _objects(url, store), reader(url, store, conditional=True))


def client_options(timeout_s: float, plain: bool, headers: dict[str, str] | None = None) -> "ClientConfig":
    """plain   HTTP without TLS is allowed. Silence ends a request, not its length: a large file takes long."""
    silence = timedelta(seconds=timeout_s)
    return {
        "allow_http": plain,
        "connect_timeout": silence,
        "read_timeout": silence,
        "timeout": timedelta(days=1),
        "default_headers": headers or {},
    }


def retries() -> "RetryConfig":
    return {"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=2)}


def persistently(call: Callable[[], T]) -> T:
    """What `call` returns, tried again where it was interrupted. Raises RemoteError."""
    for failures in range(_RETRIES):
        try:
            return call()
        except Interrupted:
            time.sleep(_FIRST_WAIT_S * 2**failures)
    return call()


def reader(url: str, store: "ObjectStore", conditional: bool) -> Callable[[Entry, int], Iterator[bytes | memoryview]]:
    """conditional   the listing's ETag is the one that a download has"""

    def read(entry: Entry, offset: int) -> Iterator[bytes | memoryview]:
        import obstore
        import obstore.exceptions

        whole: GetOptions = {"if_match": entry.etag} if conditional and entry.etag else {}
        rest: GetOptions = {**whole, "range": {"offset": offset}} if offset else whole
        unwanted = 0
        with explaining(url, entry.path):
            try:
                result = obstore.get(store, entry.path, options=rest)
            except obstore.exceptions.NotSupportedError:  # a web server without ranges sends it all again
                result, unwanted = obstore.get(store, entry.path, options=whole), offset
            if result.meta["size"] != entry.size:
                raise changed(url, f"{entry.path} has {result.meta['size']} bytes, and was listed with {entry.size}")
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                wanted = memoryview(chunk)[unwanted:]
                unwanted -= len(chunk) - len(wanted)
                yield wanted

    return read


def changed(url: str, what: str) -> Changed:
    return Changed(url, what, "a published version never changes: publish another, and let uploads end first")


@contextmanager
def explaining(url: str, what: str) -> Iterator[None]:
    """What obstore raises, as RemoteError."""
    from obstore import exceptions

    try:
        yield
    except exceptions.PreconditionError as error:
        raise changed(url, f"{what} is not the file that was listed") from error
    except FileNotFoundError as error:
        raise RemoteError(url, f"{what}: {_words(error)}", "check the URL") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise RemoteError(url, f"{what}: {_words(error)}", _credentials(url)) from error
    except (exceptions.BaseError, ValueError) as error:
        words = _words(error)
        if "NoSuchBucket" in words or "404 Not Found" in words:
            raise RemoteError(url, f"{what}: {words}", "check the URL") from error
        if _NO_CREDENTIALS.search(words):
            raise RemoteError(url, f"{what}: {words}", _credentials(url)) from error
        raise Interrupted(url, f"{what}: {words}", "check that its server can be reached from here") from error


def _objects(url: str, store: "ObjectStore") -> dict[str, Entry]:
    import obstore

    with explaining(url, "cannot be listed"):
        listed = [meta for page in obstore.list(store) for meta in page]
    return {
        meta["path"]: Entry(
            meta["path"], meta["size"], meta["e_tag"] or "", modified_unix_s=meta["last_modified"].timestamp()
        )
        for meta in listed
    }


def _credentials(url: str) -> str:
    names = _CREDENTIALS.get(url.partition("://")[0])
    return f"set {names} (docs/remote.md)" if names else "this server wants credentials, which cannot be given"


def _words(error: Exception) -> str:
    """obstore's message without its structure, without queries, which may hold a signature; S3's XML as its message."""
    text = str(error).partition("\n\nDebug source")[0]
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    if told := re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL):
        return f"{told[1]}: {told[2]}"
    return " ".join(text.split())[:_MOST_TEXT]


def _has_plain_endpoint() -> bool:
    """Whether the environment names an endpoint without TLS, which is then meant."""
    names = [name for name in os.environ if re.match(r"(AWS|AZURE|GOOGLE)_.*ENDPOINT", name)]
    return any(os.environ[name].startswith("http://") for name in names)
