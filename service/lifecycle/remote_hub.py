"""hf://owner/repo[@revision][/folder]: the files of one commit of a model repository of Hugging Face's.

    <name>/<version>/...                   is a repository of models, taken as it is
    model.onnx, else onnx/model.onnx       is one model: its name is the repository's, its version 1

HF_ENDPOINT, HF_TOKEN and the token file of its own tools are honoured.
"""

import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from models.manifest import MODEL_FILE
from service.lifecycle.remote_source import (
    Entry,
    Interrupted,
    RemoteError,
    Source,
    client_options,
    persistently,
    reader,
    retries,
)

_URL = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<folder>.*?))?/*")
_MODEL_FOLDERS = ("", "onnx/")
T = TypeVar("T")

_VERSION = re.compile(r"[^/]+/[1-9][0-9]*/.+")


class _Lfs(Struct):
    oid: str


class _Item(Struct):
    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Lfs | None = None


class _Revision(Struct):
    sha: str


def open_hub(url: str, timeout_s: float) -> Source:
    """Raises RemoteError."""
    from obstore.store import HTTPStore

    found = _URL.fullmatch(url)
    if found is None:
        raise RemoteError(url, "is not hf://owner/repo[@revision][/folder]", "give it so")
    repo, revision, folder = found["repo"], found["revision"] or "main", found["folder"] or ""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    headers = {"authorization": f"Bearer {token}"} if (token := _token()) else {}
    options = client_options(timeout_s, plain=endpoint.startswith("http://"), headers=headers)
    store = HTTPStore.from_url(f"{endpoint}/{repo}/resolve", client_options=options, retry_config=retries())

    def once() -> dict[str, Entry]:
        api = f"{endpoint}/api/models/{repo}"
        sha = _decoded(url, _get(url, f"{api}/revision/{revision}", headers, timeout_s)[0], _Revision).sha
        items = [item for item in _tree(url, f"{api}/tree/{sha}", headers, timeout_s) if item.type == "file"]
        return arranged({item.path: _entry(item, sha) for item in items}, repo.partition("/")[2], folder)

    # The ETag of a download is that of the server it was redirected to.
    return Source(url, lambda: persistently(once), reader(url, store, conditional=False))


def arranged(files: dict[str, Entry], name: str, folder: str) -> dict[str, Entry]:
    """The files below `folder`, by path in the layout of a repository of models."""
    prefix = f"{folder}/" if folder else ""
    below = {path.removeprefix(prefix): entry for path, entry in files.items() if path.startswith(prefix)}
    if any(_VERSION.fullmatch(path) for path in below):
        return below
    for place in _MODEL_FOLDERS:
        if place + MODEL_FILE in below:  # and what lies beside: model.onnx_data
            mine = {path: entry for path, entry in below.items() if path.startswith(place + MODEL_FILE)}
            return {f"{name}/1/{path.removeprefix(place)}": entry for path, entry in mine.items()}
    return {}


def _entry(item: _Item, sha: str) -> Entry:
    """Files of a few MB and more are LFS's, and have a SHA-256; `oid` is git's own digest."""
    digest = item.lfs.oid.removeprefix("sha256:") if item.lfs else ""
    return Entry(f"{sha}/{item.path}", item.size, etag=item.oid, sha256=digest)


def _tree(url: str, address: str, headers: dict[str, str], timeout_s: float) -> Iterator[_Item]:
    following: str | None = f"{address}?recursive=true"
    while following:
        body, following = _get(url, following, headers, timeout_s)
        yield from _decoded(url, body, list[_Item])
        if following and not following.startswith(address):
            raise RemoteError(url, f"its listing goes on at {following!r}, outside {address}", "check HF_ENDPOINT")


def _decoded(url: str, body: bytes, of: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=of)
    except msgspec.DecodeError as error:
        raise Interrupted(url, f"its listing cannot be read: {error}", "check HF_ENDPOINT") from error


def _get(url: str, address: str, headers: dict[str, str], timeout_s: float) -> tuple[bytes, str | None]:
    """A body, and where it goes on.

    Not by obstore, which takes no query, and wants a length, which these answers may lack.
    """
    request = urllib.request.Request(address, headers=headers)  # noqa: S310  # HTTP or HTTPS: HF_ENDPOINT's
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("link", ""))
            return answer.read(), following[1] if following else None
    except urllib.error.HTTPError as error:
        what = f"{urllib.parse.urlsplit(address).path} was answered {error.code}"
        if error.code in (401, 403, 404):  # a private repository is said not to be there
            raise RemoteError(url, what, "check the URL, and set HF_TOKEN where it is not public") from error
        raise Interrupted(url, what, "try again later") from error
    except OSError as error:
        raise Interrupted(url, str(error), f"check that {address} can be reached from here") from error


def _token() -> str | None:
    if token := os.environ.get("HF_TOKEN"):
        return token
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    path = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return path.read_text().strip() or None if path.is_file() else None
