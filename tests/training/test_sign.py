import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.manifest import MANIFEST_FILE, MODEL_FILE, SIGNATURE_FILE, check_no_others, read_manifest
from models.signature import check_signature, private_key_file, read_private_key, read_public_keys
from training.__main__ import command_to_resume, main, parser
from training.errors import KeyUnsuited, VersionUnknown
from training.publish import place
from training.sign import key_to_sign_with, make_keys, sign


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The private one; the public one is beside it."""
    make_keys(tmp_path / "publisher")
    return tmp_path / "publisher"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    path = tmp_path / "same.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def publish(onnx_file: Path, *flags: str) -> int:
    repository = str(onnx_file.parent / "models")
    return main(["publish", "--onnx", str(onnx_file), "--name", "same", "--repository", repository, *flags])


@pytest.fixture
def version(onnx_file: Path) -> Path:
    assert publish(onnx_file) == 0
    return onnx_file.parent / "models" / "same" / "1"


def check(version: Path, keys: Path) -> None:
    trusted = read_public_keys(keys.with_name(keys.name + ".pub"))
    check_signature(version, (version / MANIFEST_FILE).read_bytes(), trusted)


def test_a_pair_of_keys_belongs_together_and_only_the_owner_reads_the_private_one(keys: Path) -> None:
    assert keys.stat().st_mode & 0o777 == 0o600
    public = keys.with_name("publisher.pub")
    assert public.read_bytes().endswith(b" publisher\n")
    assert [*read_public_keys(public).values()] == [read_private_key(keys).public_key().public_bytes_raw()]


@pytest.mark.parametrize("name", ["publisher", "publisher.pub"])
def test_a_key_is_never_written_over(keys: Path, name: str) -> None:
    other = {"publisher": "publisher.pub", "publisher.pub": "publisher"}[name]
    (keys.parent / other).unlink()
    before = (keys.parent / name).read_bytes()
    with pytest.raises(KeyUnsuited, match=f"{name} exists"):
        make_keys(keys)
    assert (keys.parent / name).read_bytes() == before
    assert not (keys.parent / other).exists()


def test_the_commands_make_keys_and_sign(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "mine.key"]) == 0
    (name,) = read_public_keys(tmp_path / "mine.key.pub")
    printed = capsys.readouterr().out
    assert name in printed
    assert "--require-signature mine.key.pub" in printed
    before = (version / MANIFEST_FILE).read_bytes()
    assert main(["sign", "same/1", "--key", "mine.key"]) == 0
    assert capsys.readouterr().out == f"Signed models/same/1 with {name}\n"
    check(version, tmp_path / "mine.key")
    assert (version / MANIFEST_FILE).read_bytes() == before
    check_no_others(version, read_manifest(version))


def test_the_highest_version_is_signed_where_none_is_named(onnx_file: Path, version: Path, keys: Path) -> None:
    assert publish(onnx_file) == 0
    assert sign(version.parents[1], "same", read_private_key(keys)) == version.parent / "2"
    assert not (version / SIGNATURE_FILE).exists()


def test_a_version_can_be_signed_as_it_is_published(onnx_file: Path, keys: Path) -> None:
    assert publish(onnx_file, "--sign-key", str(keys)) == 0
    version = onnx_file.parent / "models" / "same" / "1"
    check(version, keys)
    assert [path.name for path in version.parent.iterdir()] == ["1"]
    assert set(read_manifest(version).files) == {path.name for path in version.iterdir()} - {
        MANIFEST_FILE,
        SIGNATURE_FILE,
    }


def test_where_signing_fails_nothing_is_published(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(FileNotFoundError, match=MANIFEST_FILE):
        place(tmp_path / "models", "same", 1, lambda folder: None, read_private_key(keys))
    assert [*(tmp_path / "models" / "same").iterdir()] == []


def test_what_is_not_as_it_was_published_is_not_signed(version: Path, keys: Path) -> None:
    key = read_private_key(keys)
    extra = version / "weights.bin"
    extra.touch()
    with pytest.raises(VersionUnknown, match=r"weights\.bin: not listed .*; nothing was signed"):
        sign(version.parents[1], "same", key)
    extra.unlink()
    version.rename(version.parent / "2")
    with pytest.raises(VersionUnknown, match=r"version 1, and the folder that of 'same' version 2; nothing was signed"):
        sign(version.parents[1], "same", key)
    (version.parent / "2").rename(version)
    os.truncate(version / MODEL_FILE, 10)
    with pytest.raises(VersionUnknown, match=r"model\.onnx: SHA-256 .*; nothing was signed"):
        sign(version.parents[1], "same", key)
    assert not (version / SIGNATURE_FILE).exists()


@pytest.mark.parametrize("name", ["same/2", "other", "same/one"])
def test_a_version_that_is_not_there_is_named(version: Path, keys: Path, name: str) -> None:
    with pytest.raises(VersionUnknown, match=name.partition("/")[0]):
        sign(version.parents[1], name, read_private_key(keys))


def test_a_wrong_key_is_refused_before_anything_is_done(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(private_key_file(key_to_sign_with(made(tmp_path)))[:80])
    for command in (
        ["mnist", "--data-dir", str(tmp_path / "none"), "--sign-key", str(tmp_path / "key")],
        ["quantise", "mnist", "--sign-key", str(tmp_path / "key")],
        ["publish", "--onnx", str(onnx_file), "--name", "same", "--sign-key", str(tmp_path / "key")],
        ["sign", "mnist", "--key", str(tmp_path / "key")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / 'key'}: expected an OpenSSH private key")
        assert error.count("\n") == 1


def made(folder: Path) -> Path:
    make_keys(folder / "whole")
    return folder / "whole"


def test_a_run_that_was_stopped_goes_on_with_its_key() -> None:
    given = parser().parse_args(["mnist", "--sign-key", "publisher"])
    assert command_to_resume(given, Path("runs/mnist/1")).endswith("--sign-key publisher")


def test_golden_rows_are_among_what_a_signature_covers(version: Path) -> None:
    with np.load(version / "golden.npz") as golden:
        assert golden.files
    assert "golden.npz" in read_manifest(version).files
