"""The contract between training and serving: what a published model version says about itself.

    models/<name>/<version>/
        model.onnx       the graph, preprocessing inside; dimension 0 of every tensor is the batch
        manifest.json    `Manifest` below
        golden.npz       arrays `inputs.<tensor>` and `outputs.<tensor>`: rows the service replays before it serves;
                         BF16 as its bits in uint16, BYTES as numpy text
        example.png      an image model's first test image, for people to try it with; example.json, where it takes rows
        manifest.sig     optional: who vouches for the manifest (signature.py)
        ...              checkpoint, training history, report: whatever `files` lists

A version is immutable once published: `files` holds the SHA-256 of everything beside the manifest and its signature,
and `check_files` compares. `training` writes this, `service` reads it, and neither knows more of the other than these
two modules.
Checked by tests/unit/test_manifest.py.
"""

import hashlib
import json
import os
import stat
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
SIGNATURE_FILE = "manifest.sig"
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
    return parse_manifest(read_beside(version_dir, MANIFEST_FILE), version_dir / MANIFEST_FILE)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """`path` is where it was read, for the message. Raises ManifestError."""
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error


def write_manifest(version_dir: Path, manifest: Manifest) -> None:
    text = json.dumps(msgspec.to_builtins(manifest), indent=2, ensure_ascii=False)
    (version_dir / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def digest_file(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return FileDigest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def read_beside(version_dir: Path, name: str) -> bytes:
    """The bytes of one of the folder's own files. Raises ManifestError."""
    path = version_dir / name
    try:
        require_own_file(version_dir, path)
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error


def require_own_file(version_dir: Path, path: Path) -> None:
    """That `path` is a file and lies in the folder, links followed. Raises ManifestError, OSError.

    Anything but a file could keep its reader waiting for ever; what lies elsewhere may change while nobody publishes.
    """
    real = Path(os.path.realpath(path, strict=True))
    if not stat.S_ISREG(real.stat().st_mode):
        raise ManifestError(f"{path}: expected a file")
    if not real.is_relative_to(os.path.realpath(version_dir)):
        raise ManifestError(f"{path}: a link to {real}, which is outside the version's folder")


def check_identity(version_dir: Path, manifest: Manifest, name: str, version: str) -> None:
    """That the manifest is that of this name and version. Raises ManifestError."""
    if (manifest.name, str(manifest.version)) != (name, version):
        raise ManifestError(
            f"{version_dir / MANIFEST_FILE}: is that of {manifest.name!r} version {manifest.version}, "
            f"and the folder that of {name!r} version {version}"
        )


def check_files(version_dir: Path, manifest: Manifest) -> None:
    """Compare every listed file with its digest. Raises ManifestError for the first that is missing or differs."""
    for name, expected in manifest.files.items():
        path = version_dir / name
        if Path(name).name != name or "\0" in name:
            raise ManifestError(f"{version_dir / MANIFEST_FILE}: files: {name!r} is not a plain file name")
        try:
            require_own_file(version_dir, path)
            found = digest_file(path)
        except OSError as error:
            raise ManifestError(f"{path}: listed in the manifest, but {error.strerror}") from error
        if found != expected:
            raise ManifestError(
                f"{path}: SHA-256 {found.sha256} ({found.bytes} bytes) is not the manifest's "
                f"{expected.sha256} ({expected.bytes} bytes)"
            )


def check_no_others(version_dir: Path, manifest: Manifest) -> None:
    """That nothing lies in the folder that the manifest does not list. Raises ManifestError.

    A model may keep weights in files beside it, which would be read unchecked. Names that begin with a dot are left
    alone: file systems and mounts put such there.
    """
    known = manifest.files.keys() | {MANIFEST_FILE, SIGNATURE_FILE}
    try:
        others = sorted(path for path in version_dir.iterdir() if path.name not in known and path.name[0] != ".")
    except OSError as error:
        raise ManifestError(f"{version_dir}: {error.strerror}") from error
    if others:
        raise ManifestError(f"{others[0]}: not listed in {MANIFEST_FILE}; a published version never changes")


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
