import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from models.manifest import (
    DATATYPE_OF,
    NUMPY_OF,
    Classification,
    DataSet,
    Datatype,
    FileDigest,
    Golden,
    ImageInput,
    Manifest,
    ManifestError,
    Provenance,
    TensorInput,
    TensorSpec,
    Tolerance,
    Verification,
    check_files,
    digest_file,
    read_golden,
    read_manifest,
    write_golden,
    write_manifest,
)

WHOLE = Manifest(
    name="digits",
    version=3,
    description="Ziffern, größtenteils",
    created_at="2026-01-01T00:00:00+00:00",
    inputs=(TensorSpec("image", "UINT8", (-1, 28, 28, 1)),),
    outputs=(TensorSpec("probabilities", "FP32", (-1, 2)),),
    input=ImageInput(height=28, width=28, channels=1, fit="pad"),
    classification=Classification("probabilities", ("null", "eins")),
    metrics={"accuracy": 0.5},
    tolerance=Tolerance(absolute=0.25, relative=0.0),
    files={"model.onnx": FileDigest("0" * 64, 5)},
    dataset=DataSet("digits", "1" * 64, 10, 2),
    verification=Verification((1, 2), 1e-6, 2, 0, {"accuracy": 0.5}),
    provenance=Provenance({"epochs": 2, "limit": None, "rate": 0.5}, "unknown", "cpu", 1.5, {"numpy": "2"}),
)


def written(folder: Path, **changes: Any) -> Path:  # Any: what a manifest holds when somebody got it wrong
    write_manifest(folder, WHOLE)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, WHOLE)
    assert read_manifest(tmp_path) == WHOLE


def test_a_tensor_model_without_labels_is_read_too(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(
        WHOLE, input=TensorInput(), classification=None, dataset=None, verification=None, provenance=None
    )
    write_manifest(tmp_path, bare)
    assert read_manifest(tmp_path) == bare


def test_the_optional_parts_may_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    fields = json.loads(path.read_text())
    for name in ("schema", "dataset", "verification", "provenance"):
        del fields[name]
    path.write_text(json.dumps(fields))
    assert read_manifest(tmp_path).provenance is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scores": 1}, "scores"),
        ({"schema": 2}, r"\$.schema"),
        ({"version": "3"}, r"\$.version"),
        ({"inputs": [{"name": "image", "datatype": "STRING", "shape": [-1]}]}, r"\$.inputs\[0\].datatype"),
        ({"input": {"kind": "audio"}}, r"\$.input.kind"),
        ({"input": {"kind": "image", "height": 1, "width": 1, "channels": 2}}, r"\$.input.channels"),
        ({"tolerance": {"percent": 1.0}}, "percent"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    written(tmp_path, **changes)
    with pytest.raises(ManifestError, match=rf"manifest\.json: .*{named}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "\xff"}'])
def test_what_is_not_a_manifest_is_an_error_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"manifest\.json: "):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_an_error_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json: No such file"):
        read_manifest(tmp_path)


@pytest.fixture
def version(tmp_path: Path) -> tuple[Path, Manifest]:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    return tmp_path, msgspec.structs.replace(WHOLE, files={"model.onnx": digest_file(tmp_path / "model.onnx")})


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert digest_file(tmp_path / "empty") == FileDigest(
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0
    )


def test_listed_files_that_are_there_pass(version: tuple[Path, Manifest]) -> None:
    check_files(*version)


@pytest.mark.parametrize("content", [b"Graph", b"graph.", b""])
def test_a_changed_file_is_named_with_both_digests(version: tuple[Path, Manifest], content: bytes) -> None:
    folder, manifest = version
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ManifestError, match=r"model\.onnx: SHA-256 .* is not the manifest's") as raised:
        check_files(folder, manifest)
    assert manifest.files["model.onnx"].sha256 in str(raised.value)


def test_a_missing_file_is_named(version: tuple[Path, Manifest]) -> None:
    folder, manifest = version
    (folder / "model.onnx").unlink()
    with pytest.raises(ManifestError, match=r"model\.onnx: listed in the manifest, but No such file"):
        check_files(folder, manifest)


@pytest.mark.parametrize("name", ["../outside", "inner/file", "/etc/hostname", "..", "."])
def test_a_listed_name_that_leaves_the_folder_is_refused(version: tuple[Path, Manifest], name: str) -> None:
    folder, manifest = version
    outside = msgspec.structs.replace(manifest, files={name: FileDigest("0" * 64, 0)})
    with pytest.raises(ManifestError, match=r"is not a plain file name|expected a file"):
        check_files(folder, outside)


def test_golden_rows_come_back_by_name(tmp_path: Path) -> None:
    golden = Golden(
        inputs={"image": np.arange(12, dtype=np.uint8).reshape(3, 4)},
        outputs={"logits": np.ones((3, 2), np.float32), "a.b": np.zeros((3,), np.int64)},
    )
    write_golden(tmp_path, golden)
    found = read_golden(tmp_path)
    assert found.inputs.keys() == {"image"}
    assert found.outputs.keys() == {"logits", "a.b"}
    for ours, theirs in ((found.inputs, golden.inputs), (found.outputs, golden.outputs)):
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, strict=True)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_unreadable_golden_rows_are_an_error_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(ManifestError, match=r"golden\.npz: "):
        read_golden(tmp_path)


def test_missing_golden_rows_are_an_error_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"golden\.npz: .*No such file"):
        read_golden(tmp_path)


def test_golden_rows_with_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **{"inputs.image": np.array([{}], dtype=object)})
    with pytest.raises(ManifestError, match=r"golden\.npz: .*pickle"):
        read_golden(tmp_path)


@pytest.mark.parametrize("key", ["image", "inputs.", "input.image"])
def test_golden_arrays_with_other_names_are_refused(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "golden.npz", **{key: np.zeros(1)})
    with pytest.raises(ManifestError, match="is neither inputs"):
        read_golden(tmp_path)


def test_every_datatype_has_one_little_endian_dtype_and_back() -> None:
    for name, dtype in NUMPY_OF.items():
        assert DATATYPE_OF[dtype.name] == ("UINT16" if name == "BF16" else name)  # BF16 is its bits
        assert dtype.byteorder in "<=|"
    assert set(get_args(Datatype)) - NUMPY_OF.keys() == {"BYTES"}
    assert NUMPY_OF["FP32"] == np.float32
    assert NUMPY_OF["BOOL"].itemsize == 1
