"""`index.json`: what a plain web server holds, since HTTP has no listing. `python -m service index DIR` writes it.

    {"files": {"mnist/3/model.onnx": {"sha256": "9f2c…", "bytes": 104322}, "mnist/model.toml": {…}}}

It lies at the URL, and paths are below it. Write it last: what it does not list is not there.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from models.manifest import FileDigest, digest_file
from service.lifecycle.remote_source import Entry, RemoteError, explaining

if TYPE_CHECKING:
    from obstore.store import ObjectStore

INDEX_FILE = "index.json"


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """`files` by their path in the repository, with `/` between its parts."""

    files: dict[str, FileDigest]


def read_index(url: str, store: "ObjectStore") -> dict[str, Entry]:
    """Raises RemoteError."""
    import obstore

    with explaining(url, INDEX_FILE):
        text = obstore.get(store, INDEX_FILE).bytes().to_bytes()
    try:
        files = msgspec.json.decode(text, type=Index).files
    except msgspec.DecodeError as error:
        raise RemoteError(url, f"{INDEX_FILE}: {error}", "`python -m service index DIR` writes it") from error
    return {path: Entry(path, digest.bytes, sha256=digest.sha256) for path, digest in files.items()}


def write_index(repository: Path) -> int:
    """In one step, over what was there; how many files it lists. What starts with a dot is left out."""
    files = {
        path.relative_to(repository).as_posix(): digest_file(path)
        for path in sorted(repository.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(repository).parts)
    }
    files.pop(INDEX_FILE, None)
    text = msgspec.json.format(msgspec.json.encode(Index(files)), indent=2)
    with tempfile.NamedTemporaryFile(dir=repository, prefix=f".{INDEX_FILE}-", delete=False) as file:
        file.write(text + b"\n")
    staged = Path(file.name)
    staged.chmod(0o644)  # a temporary file is its owner's alone; a web server is often somebody else
    staged.rename(repository / INDEX_FILE)
    return len(files)
