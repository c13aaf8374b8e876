"""A repository that is a URL: its versions are brought into a folder, whole or not at all, and served from there.

    <cache>/<url>/repository/<name>/<version>/   complete and checked; the layout of any repository
    <cache>/<url>/staging/<name>/<version>/      what has arrived of one; becomes the former by rename
    <cache>/<url>/staging/<name>/<version>.json  the files as they were listed when that began
    <cache>/<url>/used.json, files.json          when a version was last wanted; what a model's own files were

A process that is killed leaves at most a part in `staging`, which the next goes on from, file by file, where the remote
still has the same files. What a version's manifest lists is compared with its SHA-256 before the rename. Nothing that
the remote says becomes a path unless it is a plain name. Everything here blocks: call it in a thread of a process that
does not fork. Checked by tests/remote. Why so: docs/adr/0019.
"""

import contextlib
import fcntl
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from models.manifest import MANIFEST_FILE, MODEL_FILE, FileDigest, digest_file
from service.lifecycle.download import download, keep_what_is_the_same, read_json, sync_folder, write_json
from service.lifecycle.remote_source import Changed, Entry, Interrupted, RemoteError, Source, changed, open_source
from service.settings_remote import cache_folder

log = logging.getLogger(__name__)

MODEL_FILES = ("model.toml", "config.pbtxt", "tuning.json")
"""What may lie beside a model's versions."""

SETTLE_S = 30.0
"""How old the files of a version without a manifest have to be."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_UNSAFE = re.compile(r"\\|[\x00-\x1f]")
_MOST_MODEL_FILE_BYTES = 8 << 20

Key = tuple[str, str]
"""A model's name and a version."""


class RemoteModel(Struct, frozen=True):
    """files      of the model itself, by name
    versions   the files of each, by path in the version
    """

    files: dict[str, Entry]
    versions: dict[str, dict[str, Entry]]


class _Manifest(Struct, frozen=True):
    """What is needed of one; the rest is the load gate's to judge."""

    files: dict[str, FileDigest]


def open_remote(url: str, cache_dir: Path | None, max_bytes: int, timeout_s: float = 30.0) -> "Remote":
    """Asks nothing of the remote yet. Raises RemoteError."""
    return Remote(open_source(url, timeout_s), cache_folder(url, cache_dir), max_bytes)


def by_model(files: Mapping[str, Entry]) -> dict[str, RemoteModel]:
    """What has a place in a repository, by model. Names that would lead out of it have none."""
    models: dict[str, RemoteModel] = {}
    for path, entry in files.items():
        parts = path.split("/")
        if len(parts) < 2 or not all(map(is_plain, parts)):
            continue
        model = models.setdefault(parts[0], RemoteModel({}, {}))
        if len(parts) == 2 and parts[1] in MODEL_FILES:
            model.files[parts[1]] = entry
        elif len(parts) > 2 and _VERSION.fullmatch(parts[1]):
            model.versions.setdefault(parts[1], {})["/".join(parts[2:])] = entry
    return {name: model for name, model in sorted(models.items()) if model.versions}


def is_plain(name: str) -> bool:
    """A name of one file or folder, not hidden, that means the same on every system."""
    return name != "" and not name.startswith(".") and not _UNSAFE.search(name)


class Remote:
    """One URL and its folder. Several processes may share the folder: one works on it at a time."""

    def __init__(self, source: Source, folder: Path, max_bytes: int) -> None:
        self.url = source.url
        self.repository = folder / "repository"
        self._source = source
        self._folder = folder
        self._staging = folder / "staging"
        self._max_bytes = max_bytes
        self._models: dict[str, RemoteModel] = {}
        self._wrong: dict[Key, tuple[dict[str, Entry], RemoteError]] = {}  # not to be downloaded again and again

    def list(self) -> dict[str, list[str]]:
        """The remote's models and their versions, oldest first. Raises RemoteError."""
        self._models = by_model(self._source.files())
        return {name: sorted(model.versions, key=int) for name, model in self._models.items()}

    def fetch(self, name: str, version: str, keep: Collection[Key] = ()) -> Path:
        """The version's folder, complete and checked, downloaded where it is not there yet.

        keep     versions that may not be removed for it
        Raises   RemoteError
        """
        with self._alone():
            if not (self.repository / name / version).is_dir():
                self.list()  # what was wrong with it may have been put right
            return self._fetch(name, version, keep)

    def refresh(
        self, wanted: Callable[[str, Sequence[str]], Sequence[str]], keep: Collection[Key] = ()
    ) -> dict[Key, str]:
        """Bring the folder to what the remote has: the models' own files, then the wanted versions.

        wanted   gets a model's name and its versions, oldest first; the model's own files are there when it is called
        keep     versions in use: not removed to make room, only where the remote has them no more
        Returns  what could not be brought, with the reason; the version is "" for the model's own files
        Raises   RemoteError where the remote cannot be listed
        """
        with self._alone():
            listed, refused = self.list(), dict[Key, str]()
            if not listed:
                log.warning("%s holds no <name>/<version>/<file>; what was downloaded before stays", self.url)
                return {}
            self._forget()
            chosen: list[Key] = []
            for name, versions in listed.items():
                with _noting(refused, (name, "")):
                    self._bring_model_files(name)
                chosen += [(name, version) for version in wanted(name, versions)]
            for name, version in chosen:
                with _noting(refused, (name, version)):
                    self._fetch(name, version, {*keep, *chosen})
            return refused

    def evict(self, keep: Collection[Key] = (), room_bytes: int = 0) -> None:
        """Remove versions that are not in `keep`, least recently used first, until `room_bytes` more would fit."""
        excess = self._used_bytes() + room_bytes - self._max_bytes
        for _, path, size in sorted(self._removable(keep)):
            if excess <= 0:
                return
            log.info("%s makes room: %d bytes", path, size)
            self._remove(path)
            excess -= size

    # ── one version ──────────────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self, name: str, version: str, keep: Collection[Key]) -> Path:
        target = self.repository / name / version
        if not target.is_dir():
            try:
                self._download(name, version, keep)
            except Changed:  # since it was listed; once more, for somebody may have been uploading
                self.list()
                self._download(name, version, keep)
        self._mark_used((name, version))
        return target

    def _download(self, name: str, version: str, keep: Collection[Key]) -> None:
        files = self._listed(name, version)
        entries, error = self._wrong.get((name, version), ({}, None))
        if error is not None and entries == files:
            raise error
        self._require_whole(name, version, files)
        self._make_room(name, version, files, keep)
        staging = self._staging / name / version
        target = self.repository / name / version
        log.info("%s: downloading %s version %s, %d bytes", self.url, name, version, _total(files))
        try:
            keep_what_is_the_same(staging, files)
            self._bring_files(staging, files)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
            sync_folder(target.parent)
            staging.with_name(f"{version}.json").unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RemoteError(self.url, f"{staging}: {reason}", "check the folder of remote.cache_dir") from error

    def _require_whole(self, name: str, version: str, files: dict[str, Entry]) -> None:
        """A manifest says what belongs to a version. One without may still be on its way, its manifest too."""
        if MANIFEST_FILE in files:
            return
        if MODEL_FILE not in files:
            raise changed(self.url, f"{name}/{version}/ has neither {MANIFEST_FILE} nor {MODEL_FILE}")
        if max(entry.modified_unix_s for entry in files.values()) > time.time() - SETTLE_S:
            what = f"{name}/{version}/ has no {MANIFEST_FILE} and was changed within the last {SETTLE_S:g} s"
            raise Interrupted(self.url, what, "it may not be complete, and is taken once it is older")

    def _listed(self, name: str, version: str) -> dict[str, Entry]:
        for _ in ("as listed before", "as listed now"):
            if (model := self._models.get(name)) and (files := model.versions.get(version)):
                return files
            self.list()
        raise RemoteError(self.url, f"holds no {name}/{version}/", "check the name and the version")

    def _bring_files(self, staging: Path, files: dict[str, Entry]) -> None:
        """The manifest first: what is not what it lists need not be downloaded."""
        expected = {path: entry.sha256 for path, entry in files.items() if entry.sha256}
        if MANIFEST_FILE in files:
            download(self._source, files[MANIFEST_FILE], staging / MANIFEST_FILE)
            expected |= self._digests(staging / MANIFEST_FILE, files)
        for path, entry in files.items():
            download(self._source, entry, staging / path)
            self._check(staging, path, expected.get(path), files)
        sync_folder(staging)

    def _digests(self, manifest: Path, files: dict[str, Entry]) -> dict[str, str]:
        """Of the files that the manifest lists, all of which the remote must have, with that many bytes."""
        try:
            listed = msgspec.json.decode(manifest.read_bytes(), type=_Manifest).files
        except msgspec.DecodeError as error:
            manifest.unlink()
            raise self._reject(manifest.parent, files, f"{MANIFEST_FILE}: {error}") from error
        for path, digest in listed.items():
            if path not in files:
                raise changed(self.url, f"{path} is listed in {MANIFEST_FILE} of {_name(manifest.parent)}, and missing")
            if files[path].size != digest.bytes:
                found = f"{files[path].size} bytes, not the {digest.bytes} of {MANIFEST_FILE}"
                raise changed(self.url, f"{_name(manifest.parent)}/{path} has {found}")
        return {path: digest.sha256 for path, digest in listed.items()}

    def _check(self, staging: Path, path: str, expected: str | None, files: dict[str, Entry]) -> None:
        if expected is None:
            return
        if (found := digest_file(staging / path).sha256) != expected:
            (staging / path).unlink()
            raise self._reject(staging, files, f"{path}: SHA-256 {found} is not the expected {expected}")

    def _reject(self, staging: Path, files: dict[str, Entry], what: str) -> RemoteError:
        error = RemoteError(self.url, f"{_name(staging)}: {what}", "publish it again, as another version")
        self._wrong[staging.parent.name, staging.name] = files, error
        return error

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self, name: str, version: str, files: dict[str, Entry], keep: Collection[Key]) -> None:
        """Raises RemoteError, having removed nothing, where the version cannot fit."""
        total, keep = _total(files), {*keep, (name, version)}
        needed = total - _folder_bytes(self._staging / name / version)  # what has arrived of it takes its room already
        freeable = sum(size for _, _, size in self._removable(keep))
        if self._used_bytes() + needed - freeable > self._max_bytes:
            raise RemoteError(
                self.url,
                f"{name} version {version} has {total} bytes, and remote.max_bytes, {self._max_bytes}, has no room for "
                "it beside what is in use",
                "raise remote.max_bytes",
            )
        self.evict(keep, needed)

    def _removable(self, keep: Collection[Key]) -> Sequence[tuple[float, Path, int]]:
        """When each was last used, its folder and its bytes; a part of a version was never used."""
        used = read_json(self._folder / "used.json", dict[str, float])
        parts = [(0.0, path) for path in self._staging.glob("*/*/")]
        whole = [(used.get(_name(path), 0.0), path) for path in self.repository.glob("*/*/")]
        return [(at, path, _folder_bytes(path)) for at, path in parts + whole if _key(path) not in keep]

    def _used_bytes(self) -> int:
        return _folder_bytes(self.repository) + _folder_bytes(self._staging)

    def _mark_used(self, key: Key) -> None:
        """Not in the version's folder: whoever watches the repository would see it change."""
        path = self._folder / "used.json"
        used = {name: at for name, at in read_json(path, dict[str, float]).items() if (self.repository / name).is_dir()}
        write_json(path, used | {"/".join(key): time.time()})

    def _remove(self, folder: Path) -> None:
        """Gone in one step, whatever happens then."""
        gone = Path(tempfile.mkdtemp(dir=self._folder, prefix=".gone-"))
        folder.rename(gone / folder.name)
        shutil.rmtree(gone)

    # ── the repository ───────────────────────────────────────────────────────────────────────────────────────────

    def _forget(self) -> None:
        """Remove versions that the remote has no more."""
        for path in self.repository.glob("*/*/"):
            model = self._models.get(path.parent.name)
            if model is None or path.name not in model.versions:
                log.info("%s: the remote has it no more", path)
                self._remove(path)

    def _bring_model_files(self, name: str) -> None:
        path = self._folder / "files.json"
        known = read_json(path, dict[str, Entry])
        for file in MODEL_FILES:
            entry, key, target = self._models[name].files.get(file), f"{name}/{file}", self.repository / name / file
            if entry is None:
                if known.pop(key, None) is not None:  # else it is not the remote's: `tune` writes here too
                    target.unlink(missing_ok=True)
            elif (before := known.get(key)) is None or not before.is_same(entry) or not target.exists():
                self._bring_model_file(entry, target)
                known[key] = entry
        write_json(path, known)

    def _bring_model_file(self, entry: Entry, target: Path) -> None:
        if entry.size > _MOST_MODEL_FILE_BYTES:
            most = f"at most {_MOST_MODEL_FILE_BYTES} are expected"
            raise RemoteError(self.url, f"{entry.path} has {entry.size} bytes", most)
        staged = self._staging / target.parent.name / target.name
        staged.unlink(missing_ok=True)
        download(self._source, entry, staged)
        if entry.sha256 and digest_file(staged).sha256 != entry.sha256:
            raise changed(self.url, f"{entry.path} has not the SHA-256 that was listed")
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While another process works on this folder, wait; then clear away what one left that was killed."""
        try:
            self.repository.mkdir(parents=True, exist_ok=True)
            self._staging.mkdir(exist_ok=True)
            lock = (self._folder / "lock").open("a")
        except OSError as error:
            what = f"{error.filename}: {error.strerror}"
            raise RemoteError(self.url, what, "choose another folder with remote.cache_dir") from error
        with lock as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in self._folder.glob(".gone-*"):
                shutil.rmtree(left)
            yield


@contextlib.contextmanager
def _noting(refused: dict[Key, str], key: Key) -> Iterator[None]:
    try:
        yield
    except (RemoteError, OSError) as error:
        refused[key] = str(error)


def _name(path: Path) -> str:
    """<name>/<version>"""
    return f"{path.parent.name}/{path.name}"


def _key(path: Path) -> Key:
    return path.parent.name, path.name


def _total(files: Mapping[str, Entry]) -> int:
    return sum(entry.size for entry in files.values())


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
