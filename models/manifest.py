"""The contract between training and serving: what a published model version says about itself.

    models/<name>/<version>/
        model.onnx       the graph, preprocessing inside; dimension 0 of every tensor is the batch
        manifest.json    `Manifest` below
        golden.npz       arrays `inputs.<tensor>` and `outputs.<tensor>`: rows the service replays before it serves;
                         BF16 as its bits in uint16, BYTES as numpy text
        example.png      an image model's first test image, for people to try it with; example.json, where it takes rows
        ...              checkpoint, training history, report: whatever `files` lists

A version is immutable once published: `files` holds the SHA-256 of everything beside the manifest, and `check_files`
compares. `training` writes this, `service` reads it, and neither knows more of the other than this module.
Checked by tests/unit/test_manifest.py.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
"""Open Inference Protocol names of the tensor element types. BYTES elements are strings, of any length."""

NUMPY_OF: Mapping[Datatype, np.dtype[Any]] = {  # Any: the element types differ
    name: np.dtype(
        {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "uint16"}.get(
            name, name.lower()
        )
    ).newbyteorder("<")
    for name in get_args(Datatype)
    if name != "BYTES"
}
"""The elements as they lie in memory. numpy has no bfloat16: BF16 is its bits. BYTES is not here: it has no size."""

DATATYPE_OF: Mapping[str, Datatype] = {dtype.name: name for name, dtype in NUMPY_OF.items() if name != "BF16"}

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
EXAMPLE_FILE = "example.png"
EXAMPLE_ROW_FILE = "example.json"


class ManifestError(Exception):
    """A manifest that cannot be read, or files that are not the ones it lists. The message names the file and field."""


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output. `shape` is that of the file, -1 for an axis of any length: the batch is a leading -1.

    Whether a leading -1 is the batch is a property of the model (`service/engine/batch_axis.py`), not of the tensor.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ImageInput(Struct, frozen=True, forbid_unknown_fields=True, tag="image", tag_field="kind"):
    """The only input is `uint8 [N, height, width, channels]`; uploads are decoded and brought to that size by `fit`.

    fit   crop: scale the shorter side and cut the centre · pad: scale the longer side, black around · stretch
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Literal["crop", "pad", "stretch"] = "crop"


class TensorInput(Struct, frozen=True, forbid_unknown_fields=True, tag="tensor", tag_field="kind"):
    """Inputs are plain tensors; there is nothing to decode. `features` names the columns of [N, features]."""

    features: tuple[str, ...] = ()


class Classification(Struct, frozen=True, forbid_unknown_fields=True):
    """`output` holds one probability per label, in the order of `labels`."""

    output: str
    labels: tuple[str, ...]


class FileDigest(Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    bytes: int


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True):
    """An answer passes where |answer - golden| <= absolute + relative * |golden|, element by element."""

    absolute: float = 1e-4
    relative: float = 1e-3


class DataSet(Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` is over the bytes of train_x, train_y, test_x, test_y in that order."""

    name: str
    sha256: str
    train_items: int
    test_items: int


class Verification(Struct, frozen=True, forbid_unknown_fields=True):
    """What `training verify` saw: the exported file against torch, and its own score on the test set."""

    batch_sizes: tuple[int, ...]
    max_abs_difference: float
    test_items: int
    disagreements: int
    metrics: dict[str, float]


class Provenance(Struct, frozen=True, forbid_unknown_fields=True):
    """How to make this version again.

    source   the commit of the code, several where a run was resumed at another; "unknown" outside a checkout
    seeds    the accuracy (or R²) that the same recipe reached with each seed tried, this version's among them
    """

    recipe: dict[str, str | int | float | bool | None]
    source: str
    device: str
    seconds: float
    packages: dict[str, str]
    seeds: dict[str, float] = {}


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    schema: Literal[1] = 1
    name: str
    version: int
    description: str
    created_at: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input: ImageInput | TensorInput
    classification: Classification | None
    metrics: dict[str, float]
    tolerance: Tolerance
    files: dict[str, FileDigest]
    dataset: DataSet | None = None
    verification: Verification | None = None
    provenance: Provenance | None = None


def read_manifest(version_dir: Path) -> Manifest:
    """Raises ManifestError naming the file and the field that is wrong."""
    path = version_dir / MANIFEST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error


def write_manifest(version_dir: Path, manifest: Manifest) -> None:
    text = json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False)
    (version_dir / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def digest_file(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return FileDigest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def check_files(version_dir: Path, manifest: Manifest) -> None:
    """Compare every listed file with its digest. Raises ManifestError for the first that is missing or differs."""
    for name, expected in manifest.files.items():
        path = version_dir / name
        if Path(name).name != name:
            raise ManifestError(f"{version_dir / MANIFEST_FILE}: files: {name!r} is not a plain file name")
        try:
            found = digest_file(path)
        except OSError as error:
            raise ManifestError(f"{path}: listed in the manifest, but {error.strerror}") from error
        if found != expected:
            raise ManifestError(
                f"{path}: SHA-256 {found.sha256} ({found.bytes} bytes) is not the manifest's "
                f"{expected.sha256} ({expected.bytes} bytes)"
            )


class Golden(Struct, frozen=True):
    """Golden rows: arrays by tensor name, dimension 0 the row, equally many in each."""

    inputs: dict[str, npt.NDArray[np.generic]]
    outputs: dict[str, npt.NDArray[np.generic]]


def write_golden(version_dir: Path, golden: Golden) -> None:
    arrays = {f"inputs.{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"outputs.{name}": array for name, array in golden.outputs.items()}
    np.savez_compressed(version_dir / GOLDEN_FILE, allow_pickle=False, **arrays)


def read_golden(version_dir: Path) -> Golden:
    """Raises ManifestError when the file is not a golden.npz."""
    path = version_dir / GOLDEN_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: {error}") from error
    sides: dict[str, dict[str, npt.NDArray[np.generic]]] = {"inputs": {}, "outputs": {}}
    for key, array in arrays.items():
        side, _, tensor = key.partition(".")
        if side not in sides or not tensor:
            raise ManifestError(f"{path}: array {key!r} is neither inputs.<tensor> nor outputs.<tensor>")
        sides[side][tensor] = array
    return Golden(**sides)
