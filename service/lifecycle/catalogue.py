"""What lies in a model repository: every version, the settings of its model, and whether it is there whole.

    <repository>/<name>/<version>/model.onnx    a version is a folder named by a positive number, without leading zeros
    <repository>/<name>/model.toml              the model's settings; where there is none, Triton's config.pbtxt

Not looked at: names that begin with a dot (publishing and downloads put unfinished folders there), other names than
numbers, folders with neither versions nor settings. Links are followed, wherever they lead: volumes are mounted and
versions shared that way, and whoever can write here can as well put a file. A link to nothing is nothing.

A version is whole when its model file is there and, with a manifest, every file that is listed, in its size; digests
are the load gate's to check. So nothing is picked up while it is copied; a bare file, of which nobody says how long it
is, must also have stopped changing (`Settling`). Nothing here raises for one model: what is wrong is its `refused`, or
its version's `incomplete`, for the index.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from models.manifest import MANIFEST_FILE, MODEL_FILE, ManifestError, read_manifest
from service.lifecycle.messages import Overrides
from service.lifecycle.model_file import MODEL_SETTINGS_FILE, TRITON_FILE, BadModelFile, ModelFile, parse_model_file
from service.lifecycle.routing import is_version
from service.lifecycle.version_policy import Latest, absent, wanted

log = logging.getLogger(__name__)

_LONGEST_SETTINGS_BYTES = 1 << 20
_told: set[tuple[str, str]] = set()  # name and digest of the files whose ignored fields have been logged

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""(name, bytes, mtime in ns, inode) of each file of a version, by name. It changes when any of them does."""

Key = tuple[str, str]
"""A model's name, a version."""


class RepositoryUnreadable(Exception):
    """The repository itself cannot be listed."""


class FoundVersion(Struct, frozen=True):
    """What to load, and how. `refused`: why its model's settings say that it may not; "" where they do not."""

    name: str
    version: str
    path: Path
    overrides: Overrides = Overrides()
    refused: str = ""


class ListedVersion(Struct, frozen=True):
    """`incomplete`: what is not there of it; "" where it is whole."""

    version: str
    path: Path
    fingerprint: Fingerprint
    incomplete: str = ""


class ListedModel(Struct, frozen=True):
    """versions   ascending
    settings   of its settings file; those of no file where it is refused
    digest     SHA-256 of that file, "" without one
    refused    why none of its versions may be served; "" where they may
    """

    name: str
    versions: tuple[ListedVersion, ...]
    settings: ModelFile = ModelFile()
    digest: str = ""
    refused: str = ""

    def whole(self) -> list[str]:
        """The versions that are there whole, ascending."""
        return [listed.version for listed in self.versions if not listed.incomplete]

    def found(self, version: str) -> FoundVersion:
        """To load a version that is listed."""
        listed = next(each for each in self.versions if each.version == version)
        return FoundVersion(self.name, version, listed.path, self.settings.overrides, self.refused)


Catalogue = dict[str, ListedModel]
"""By name, in its order."""


def scan(repository: Path) -> Catalogue:
    """What is there now. Raises RepositoryUnreadable."""
    try:
        folders = sorted(path for path in repository.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        raise RepositoryUnreadable(f"model repository {repository}: {error.strerror}") from error
    models = (_list_model(folder) for folder in folders)
    catalogue = {model.name: model for model in models if model.versions or model.digest or model.refused}
    for model in catalogue.values():
        _tell_ignored(model)
    return catalogue


def find_versions(repository: Path) -> list[FoundVersion]:
    """Of every model the newest version that its policy allows, by name. Raises RepositoryUnreadable."""
    return [_newest(model) for model in scan(repository).values() if model.versions]


class Settling:
    """Tells which versions have stopped changing. It has no clock: instants are the caller's, in seconds."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[Key, tuple[Fingerprint, float]] = {}

    def look(self, catalogue: Catalogue, now_s: float) -> set[Key]:
        """The versions that are there whole and have been as they are for `settle_s`.

        One that is served and not among them has been touched: it is no reason to stop it, but not to load it either.
        """
        since: dict[Key, tuple[Fingerprint, float]] = {}
        for model in catalogue.values():
            for listed in model.versions:
                key = (model.name, listed.version)
                before = self._since.get(key)
                same = before is not None and before[0] == listed.fingerprint
                since[key] = before if before and same else (listed.fingerprint, now_s)
        self._since = since
        whole = {(model.name, version) for model in catalogue.values() for version in model.whole()}
        return {key for key in whole if now_s - since[key][1] >= self._settle_s}

    def next_at(self, now_s: float) -> float | None:
        """When to look again because something may have settled; None: not before something changes."""
        due = (seen_at + self._settle_s for _, seen_at in self._since.values())
        return min((at for at in due if at > now_s), default=None)


def _newest(model: ListedModel) -> FoundVersion:
    there = [listed.version for listed in model.versions]
    policy = model.settings.policy or Latest()
    if chosen := wanted(policy, there):
        return model.found(chosen[-1])
    reason = f"its settings ask for versions that are not there: {', '.join(absent(policy, there))}"
    return replace(model.found(there[-1]), refused=reason)


def _list_model(folder: Path) -> ListedModel:
    name = os.fsencode(folder.name).decode("utf-8", "backslashreplace")
    refused = "" if name == folder.name else "the name of its folder is not UTF-8"
    try:
        versions = tuple(_list_versions(folder))
    except OSError as error:
        return ListedModel(name, (), refused=f"its folder cannot be read: {error.strerror}")
    digest = ""
    settings = ModelFile()
    try:
        if (file := _settings_file(folder)) is not None:
            content = _read(file)
            digest = hashlib.sha256(content).hexdigest()
            settings = _parse(file.name, content, name)
    except BadModelFile as error:
        refused = str(error)
    return ListedModel(name, versions, settings, digest, refused)


def _list_versions(folder: Path) -> Iterator[ListedVersion]:
    numbers = [path for path in folder.iterdir() if is_version(path.name) and path.is_dir()]
    for path in sorted(numbers, key=lambda path: int(path.name)):
        yield ListedVersion(path.name, path, _fingerprint(path), _what_is_missing(path))


def _fingerprint(folder: Path) -> Fingerprint:
    return tuple(sorted(_files(folder)))


def _files(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError:  # it went, or is a link to nothing
                yield str(path.relative_to(folder)), 0, 0, 0
            else:
                yield str(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ino


def _what_is_missing(version: Path) -> str:
    try:
        if not (version / MODEL_FILE).is_file():
            return f"{MODEL_FILE} is missing"
        if not (version / MANIFEST_FILE).exists():
            return ""
        if not (version / MANIFEST_FILE).is_file():
            return f"{MANIFEST_FILE} is not a file"
        for name, expected in read_manifest(version).files.items():
            if not (version / name).is_file():
                return f"{name} is listed in {MANIFEST_FILE}, but missing"
            if (size := (version / name).stat().st_size) != expected.bytes:
                return f"{name} has {size} bytes; {MANIFEST_FILE} lists {expected.bytes}"
    except ManifestError as error:
        return str(error).removeprefix(f"{version}/")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


# ── settings of a model ──────────────────────────────────────────────────────────────────────────────────────────────


def _settings_file(folder: Path) -> Path | None:
    return next((folder / name for name in (MODEL_SETTINGS_FILE, TRITON_FILE) if os.path.lexists(folder / name)), None)


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise BadModelFile(f"{file.name}: it is not a file")
        with file.open("rb") as opened:
            content = opened.read(_LONGEST_SETTINGS_BYTES + 1)
    except OSError as error:
        raise BadModelFile(f"{file.name}: it cannot be read: {error.strerror}") from error
    if len(content) > _LONGEST_SETTINGS_BYTES:
        raise BadModelFile(f"{file.name}: it has more than {_LONGEST_SETTINGS_BYTES} bytes")
    return content


def _parse(file: str, content: bytes, model: str) -> ModelFile:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadModelFile(f"{file}: it is not UTF-8: {error.reason} at byte {error.start}") from error
    if file == MODEL_SETTINGS_FILE:
        return parse_model_file(text)
    try:
        from service.lifecycle.triton_config import parse_triton_config  # here: most repositories need no protobuf
    except ImportError as error:
        raise BadModelFile(f"{file}: reading it needs the package protobuf; or write {MODEL_SETTINGS_FILE}") from error
    return parse_triton_config(text, model)


def _tell_ignored(model: ListedModel) -> None:
    """Once for each file, however often it is scanned."""
    if model.settings.ignored and (model.name, model.digest) not in _told:
        _told.add((model.name, model.digest))
        log.info("model %s: %s: ignored: %s", model.name, TRITON_FILE, ", ".join(model.settings.ignored))
