"""Files from a remote to a folder, each going on from what has arrived of it.

<folder>/<path>    its first bytes, all of them once it has its size
<folder>.json      the files as they were listed when they were begun: bytes of another file are not gone on from
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from service.lifecycle.remote_source import Changed, Entry, Interrupted, Source, changed

_ATTEMPTS = 5  # in a row in which nothing arrives
_FIRST_WAIT_S = 0.2

T = TypeVar("T")


def keep_what_is_the_same(folder: Path, files: Mapping[str, Entry]) -> None:
    """Of what has arrived, remove what is not the beginning of one of `files`; from now on the folder is for these."""
    record = folder.with_name(f"{folder.name}.json")
    begun = read_json(record, dict[str, Entry])
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path, entry in begun.items():
        if path not in files or not entry.is_same(files[path]):
            (folder / path).unlink(missing_ok=True)
    write_json(record, files)


def download(source: Source, entry: Entry, path: Path) -> None:
    """Until `path` has all of its bytes. Raises RemoteError; what has arrived stays, unless it is of another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    with path.open("ab") as file:
        while (arrived := file.tell()) < entry.size:
            try:
                for chunk in source.read(entry, arrived):
                    file.write(chunk)
                if file.tell() < entry.size:
                    what = f"{entry.path} ended after {file.tell()} of {entry.size} bytes"
                    raise Interrupted(source.url, what, "try again")
            except Interrupted:
                failures = 1 if file.tell() > arrived else failures + 1
                if failures == _ATTEMPTS:
                    raise
                time.sleep(_FIRST_WAIT_S * 2 ** (failures - 1))
            except Changed:
                file.truncate(0)
                raise
        if arrived > entry.size:
            file.truncate(0)
            raise changed(source.url, f"{entry.path} has more than the {entry.size} bytes that were listed")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """The names in it outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, of: type[dict[str, T]]) -> dict[str, T]:
    """{} where it is not there, or was not written by this version of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=of)
    except (OSError, msgspec.DecodeError):
        return {}


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """In one step."""
    staged = path.with_name(f".{path.name}")
    staged.write_bytes(msgspec.json.encode(values))
    staged.rename(path)
