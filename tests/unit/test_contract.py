"""Every refusal of the load gate, on a published model of the tests."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    Golden,
    TensorSpec,
    digest_file,
    read_manifest,
    write_golden,
)
from models.signature import fingerprint, write_signature
from service.engine import repository
from service.engine.contract import read_contract
from service.engine.repository import FoundVersion, ModelSettings, load_version
from service.engine.session import UnservableModel
from tests.support.build_models import change_manifest, publish_scores, quarters_of

KEY = Ed25519PrivateKey.generate()
TRUSTED = {fingerprint(KEY.public_key()): KEY.public_key().public_bytes_raw()}
SETTINGS = ModelSettings("cpu", 1, 4, 16, 1 << 20, 1, 1, 0.0)
IMAGES = np.ones((2, 28, 28, 1), np.uint8)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return publish_scores(tmp_path / "models", "scores", 2)


def read(folder: Path, trusted: Mapping[str, bytes] | None = None) -> None:
    read_contract(folder, "scores", "2", trusted)


def load(folder: Path, trusted: Mapping[str, bytes] | None = None) -> None:
    loaded = load_version(FoundVersion("scores", "2", folder), replace(SETTINGS, trusted_keys=trusted))
    os.close(loaded.arena_fd)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def move_out(folder: Path, name: str) -> None:
    """A link to the same bytes elsewhere."""
    outside = folder.parents[1] / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def in_its_place(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def other_golden(folder: Path) -> None:
    write_golden(folder, Golden({"image": IMAGES}, {"scores": quarters_of(IMAGES) + 1}))
    change_manifest(folder, files={name: digest_file(folder / name) for name in (MODEL_FILE, GOLDEN_FILE)})


# What is done to a good version: how, and what the reason says.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (lambda v: append(v / MODEL_FILE), r"model\.onnx: SHA-256 .* is not the manifest's"),
    "a truncated file": (lambda v: truncate(v / MODEL_FILE), r"model\.onnx: SHA-256 .* is not the manifest's"),
    "truncated golden rows": (lambda v: truncate(v / GOLDEN_FILE), r"golden\.npz: SHA-256 .* is not the manifest's"),
    "a missing file": (lambda v: (v / GOLDEN_FILE).unlink(), r"golden\.npz: listed in the manifest, but No such file"),
    "another file": (lambda v: (v / "weights.bin").touch(), r"weights\.bin: not listed in manifest\.json"),
    "another folder": (lambda v: (v / "weights").mkdir(), r"weights: not listed in manifest\.json"),
    "a model that is not listed": (lambda v: change_manifest(v, files={}), r"not listed in manifest\.json"),
    "a model outside": (lambda v: move_out(v, MODEL_FILE), r"model\.onnx: a link to .* outside the version's folder"),
    "a manifest outside": (lambda v: move_out(v, MANIFEST_FILE), r"manifest\.json: a link to .* outside"),
    "a folder for a model": (lambda v: in_its_place(v / MODEL_FILE, Path.mkdir), r"model\.onnx: expected a file"),
    "a folder for a manifest": (lambda v: in_its_place(v / MANIFEST_FILE, Path.mkdir), "expected a file"),
    "a pipe for a model": (lambda v: in_its_place(v / MODEL_FILE, os.mkfifo), r"model\.onnx: expected a file"),
    "a manifest that leads nowhere": (
        lambda v: in_its_place(v / MANIFEST_FILE, lambda path: path.symlink_to("gone")),
        r"manifest\.json: No such file",
    ),
    "a link to itself": (
        lambda v: in_its_place(v / MODEL_FILE, lambda path: path.symlink_to(path)),
        r"model\.onnx: listed in the manifest, but Too many levels",
    ),
    "another name": (
        lambda v: change_manifest(v, name="sums"),
        r"manifest\.json: is that of 'sums' version 2, and the folder that of 'scores' version 2",
    ),
    "another version": (lambda v: change_manifest(v, version=1), r"manifest\.json: is that of 'scores' version 1"),
    "a broken manifest": (lambda v: (v / MANIFEST_FILE).write_text("{"), r"manifest\.json: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_version_that_is_not_as_published_is_refused_before_its_model_is_opened(
    version: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter, reason = REFUSED[name]
    alter(version)
    monkeypatch.setattr(repository, "open_session", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(UnservableModel, match=reason):
        load(version)


LOADED_AND_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other golden rows": (other_golden, "golden rows: .*'scores'.*tolerance"),
    "other tensors": (
        lambda v: change_manifest(v, outputs=(TensorSpec("scores", "FP32", (-1, 5)),)),
        r"manifest\.json: outputs .* are not those of the file",
    ),
}


@pytest.mark.parametrize("name", LOADED_AND_REFUSED)
def test_a_version_that_answers_otherwise_than_promised_is_refused(version: Path, name: str) -> None:
    alter, reason = LOADED_AND_REFUSED[name]
    alter(version)
    with pytest.raises(UnservableModel, match=reason):
        load(version)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE])
def test_a_file_without_permission_is_refused_with_the_reason(version: Path, name: str) -> None:
    (version / name).chmod(0)
    with pytest.raises(UnservableModel, match=f"{name}: .*Permission denied"):
        read(version)


def test_names_that_begin_with_a_dot_are_left_alone(version: Path) -> None:
    (version / ".nfs0001").touch()
    (version / "..data").mkdir()
    load(version)


def test_files_may_be_links_within_the_folder_and_the_folder_a_link(version: Path, tmp_path: Path) -> None:
    (version / "..data").mkdir()  # as Kubernetes mounts volumes
    for name in (MODEL_FILE, MANIFEST_FILE):
        (version / name).rename(version / "..data" / name)
        (version / name).symlink_to(Path("..data") / name)
    (tmp_path / "link").symlink_to(version)
    load(tmp_path / "link")


def test_a_signature_that_nobody_asks_for_is_not_looked_at(version: Path) -> None:
    (version / SIGNATURE_FILE).write_bytes(b"no signature")
    load(version)


@pytest.fixture
def signed(version: Path) -> Path:
    write_signature(version, KEY)
    return version


def test_a_signed_version_loads(signed: Path) -> None:
    load(signed, TRUSTED)


def unsigned(folder: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()


def without_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def swap_model(folder: Path) -> None:
    """Another model under a manifest that fits it: all is well but the signature."""
    append(folder / MODEL_FILE)
    files = {**read_manifest(folder).files, MODEL_FILE: digest_file(folder / MODEL_FILE)}
    change_manifest(folder, files=files)


def wrong_signature(folder: Path) -> None:
    path = folder / SIGNATURE_FILE
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(content | {"signature": "A" * 85 + "Q=="}))


REFUSED_FOR_ITS_SIGNATURE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (without_manifest, r"manifest\.json: missing, and only signed versions are served"),
    "no signature": (unsigned, r"manifest\.sig: missing, and only signed versions are served"),
    "an old signature": (swap_model, r"manifest\.sig: not the signature of this manifest\.json"),
    "a wrong signature": (wrong_signature, r"manifest\.sig: not the signature of this manifest\.json"),
    "an unknown key": (lambda v: write_signature(v, Ed25519PrivateKey.generate()), "none of the 1 trusted keys"),
    "no signature file": (lambda v: (v / SIGNATURE_FILE).write_bytes(b"SIG"), r"manifest\.sig: "),
    "a signature outside": (lambda v: move_out(v, SIGNATURE_FILE), r"manifest\.sig: a link to .* outside"),
    "a changed file": (lambda v: append(v / MODEL_FILE), r"model\.onnx: SHA-256"),
    "another file": (lambda v: (v / "weights.bin").touch(), r"weights\.bin: not listed"),
}


@pytest.mark.parametrize("name", REFUSED_FOR_ITS_SIGNATURE)
def test_where_signatures_are_required_what_nobody_vouches_for_is_refused(
    signed: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter, reason = REFUSED_FOR_ITS_SIGNATURE[name]
    alter(signed)
    monkeypatch.setattr(repository, "open_session", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(UnservableModel, match=reason):
        load(signed, TRUSTED)


def test_an_unsigned_manifest_is_not_even_parsed_where_signatures_are_required(signed: Path) -> None:
    (signed / MANIFEST_FILE).write_bytes(b"{")
    with pytest.raises(UnservableModel, match=r"manifest\.sig: not the signature"):
        read(signed, TRUSTED)
