"""A user's own ONNX file as a published version: checked, described from the file itself, with golden rows.

Nothing knows what the answers should be, so the golden rows hold what the file says on this machine: they show that
another device or a later onnxruntime still says the same. Checked by tests/training/test_bring.py.
"""

import datetime
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import google.protobuf.message
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.manifest import (
    DATATYPE_OF,
    MODEL_FILE,
    NUMPY_OF,
    Classification,
    Datatype,
    Golden,
    ImageInput,
    Manifest,
    TensorInput,
    TensorSpec,
    write_golden,
    write_manifest,
)
from training.errors import ModelUnsuited
from training.publish import choose_version, digests, place
from training.recipes import NAME_PATTERN
from training.verify import GOLDEN_ROWS, TOLERANCE

Arrays = dict[str, npt.NDArray[np.generic]]

# onnxruntime's names of tensor types; those the protocol has no name for (strings, bfloat16, ...) are missing here.
_ONNX_TYPES: Mapping[str, Datatype] = {
    f"tensor({'float' if name == 'float32' else 'double' if name == 'float64' else name})": datatype
    for name, datatype in DATATYPE_OF.items()
}


def publish_onnx(
    path: Path,
    name: str,
    repository: Path,
    *,
    version: int | None = None,
    labels: Path | None,
    rows: Path | None,
    sign_key: Ed25519PrivateKey | None = None,
) -> Path:
    """Returns the folder of the version.

    labels   a text file with a label a line, in the order of the probabilities
    rows     an npz with an array per input, dimension 0 the row; without, rows are drawn at random
    Raises   ModelUnsuited naming the tensor and what is expected, VersionExists
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ModelUnsuited(f"--name {name!r}: expected letters, digits, '.', '_' and '-', first a letter or digit.")
    version = choose_version(repository, name, version)
    content = read_onnx(path)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = tuple(spec_of(entry) for entry in session.get_inputs())
    outputs = tuple(spec_of(entry) for entry in session.get_outputs())
    feeds = random_rows(inputs) if rows is None else given_rows(inputs, rows)
    golden = Golden(inputs=feeds, outputs=run(session, feeds))
    check_shapes(golden, outputs)
    check_rows_alone(session, golden)
    manifest = Manifest(
        name=name,
        version=version,
        description=f"{path.name}, {producer(content)}",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        inputs=inputs,
        outputs=outputs,
        input=input_of(inputs),
        classification=classification_of(golden, labels),
        metrics={},
        tolerance=TOLERANCE,
        files={},
    )

    def write(folder: Path) -> None:
        (folder / MODEL_FILE).write_bytes(content)
        write_golden(folder, golden)
        write_manifest(folder, msgspec.structs.replace(manifest, files=digests(folder)))

    return place(repository, name, version, write, sign_key)


def read_onnx(path: Path) -> bytes:
    """The bytes of a graph that stands alone and loads. Raises ModelUnsuited."""
    try:
        content = path.read_bytes()
        model = onnx.load_from_string(content)
    except OSError as error:
        raise ModelUnsuited(f"{path} cannot be read: {error.strerror}.") from error
    except google.protobuf.message.DecodeError as error:
        raise ModelUnsuited(f"{path} is not an ONNX file.") from error
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ModelUnsuited(
            f"{path} keeps weights in another file ({outside[0]} and {len(outside) - 1} more); save it with the "
            "weights inside: torch.onnx.export(..., external_data=False), or onnx.save of the loaded model."
        )
    try:
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelUnsuited(f"{path} does not load in onnxruntime: {' '.join(str(error).split())}") from error
    return content


def spec_of(entry: onnxruntime.NodeArg) -> TensorSpec:
    """Raises ModelUnsuited for what the service could not batch."""
    if entry.type not in _ONNX_TYPES:
        raise ModelUnsuited(f"tensor {entry.name} is {entry.type}; served are {', '.join(sorted(_ONNX_TYPES))}.")
    batch, *item = entry.shape or [1]
    if isinstance(batch, int) or any(not isinstance(length, int) for length in item):
        raise ModelUnsuited(
            f"tensor {entry.name} is {entry.shape}; expected a batch of any size in dimension 0 and fixed lengths "
            "after it. Export with dynamic_shapes={0: torch.export.Dim('batch')} for every input."
        )
    return TensorSpec(entry.name, _ONNX_TYPES[entry.type], (-1, *item))


def random_rows(inputs: tuple[TensorSpec, ...]) -> Arrays:
    """Seeded: floats around 0, whole numbers 0 to 255 or as far as the type goes, booleans of both kinds."""
    generator = np.random.default_rng(0)
    rows: Arrays = {}
    for tensor in inputs:
        shape, dtype = (GOLDEN_ROWS, *tensor.shape[1:]), NUMPY_OF[tensor.datatype]
        if dtype.kind == "f":
            rows[tensor.name] = generator.standard_normal(shape).astype(dtype)
        else:
            highest = 2 if dtype.kind == "b" else min(256, np.iinfo(dtype).max + 1)
            rows[tensor.name] = generator.integers(0, highest, shape).astype(dtype)
    return rows


def given_rows(inputs: tuple[TensorSpec, ...], path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            rows: Arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # TypeError: an npy
        raise ModelUnsuited(f"--golden {path} is not a readable npz: {error}") from error
    wanted = {tensor.name: tensor for tensor in inputs}
    if rows.keys() != wanted.keys():
        raise ModelUnsuited(
            f"--golden {path} holds {', '.join(rows) or 'nothing'}; expected {', '.join(wanted)}, one array per input."
        )
    for name, array in rows.items():
        tensor = wanted[name]
        if array.dtype != NUMPY_OF[tensor.datatype] or array.shape[1:] != tensor.shape[1:] or not len(array):
            raise ModelUnsuited(
                f"--golden {path}: {name} is {array.dtype} {array.shape}; expected {NUMPY_OF[tensor.datatype]} "
                f"{['rows', *tensor.shape[1:]]}, at least one."
            )
    if len({len(array) for array in rows.values()}) != 1:
        raise ModelUnsuited(f"--golden {path}: the arrays have different numbers of rows.")
    return rows


def run(session: onnxruntime.InferenceSession, feeds: Arrays) -> Arrays:
    """Raises ModelUnsuited where the graph cannot answer `feeds`."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelUnsuited(
            f"The model cannot answer {len(next(iter(feeds.values())))} rows: {' '.join(str(error).split())} "
            "Give rows it understands with --golden rows.npz."
        ) from error


def check_shapes(golden: Golden, outputs: tuple[TensorSpec, ...]) -> None:
    """What a graph declares is a promise that onnxruntime does not hold it to."""
    rows = len(next(iter(golden.inputs.values())))
    for tensor in outputs:
        found = golden.outputs[tensor.name].shape
        if found[:1] != (rows,):
            raise ModelUnsuited(
                f"output {tensor.name} is {list(found)} for {rows} rows; expected as many rows as came in."
            )
        if found[1:] != tensor.shape[1:]:
            raise ModelUnsuited(
                f"output {tensor.name} is {list(found)}, and the file declares {['rows', *tensor.shape[1:]]}."
            )


def check_rows_alone(session: onnxruntime.InferenceSession, golden: Golden) -> None:
    """A row's answer must not depend on its neighbours, or dynamic batching would change answers. The first and the
    last row are asked: one of them has the others before it, one after it."""
    rows = len(next(iter(golden.inputs.values())))
    for row in {0, rows - 1}:
        alone = run(session, {name: array[row : row + 1] for name, array in golden.inputs.items()})
        for name, found in alone.items():
            expected = golden.outputs[name][row : row + 1]
            if not np.allclose(found, expected, atol=TOLERANCE.absolute, rtol=TOLERANCE.relative, equal_nan=True):
                raise ModelUnsuited(
                    f"output {name} of a row alone differs from that of the same row in a batch: the model mixes rows, "
                    "and batching would change its answers."
                )


def input_of(inputs: tuple[TensorSpec, ...]) -> ImageInput | TensorInput:
    """An image where the only input is bytes [N, height, width, 1 or 3]."""
    if len(inputs) == 1 and inputs[0].datatype == "UINT8" and len(inputs[0].shape) == 4:
        _, height, width, channels = inputs[0].shape
        if channels in (1, 3):
            return ImageInput(height=height, width=width, channels=1 if channels == 1 else 3)
    return TensorInput()


def classification_of(golden: Golden, labels: Path | None) -> Classification | None:
    """The first output whose golden rows look like probabilities over `labels`. Raises ModelUnsuited."""
    if labels is None:
        return None
    try:
        text = labels.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnsuited(f"--labels {labels} is not a readable text file: {error}") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    for name, array in golden.outputs.items():
        fits = array.dtype.kind == "f" and array.shape[1:] == (len(names),)
        if fits and 0 <= array.min() <= array.max() <= 1:
            return Classification(name, names)
    shapes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in golden.outputs.items())
    raise ModelUnsuited(
        f"--labels {labels} has {len(names)} labels, and no output gives that many probabilities between 0 and 1 a row "
        f"(outputs: {shapes}). Put a softmax at the end of the model, or leave --labels out."
    )


def producer(content: bytes) -> str:
    model = onnx.load_from_string(content)
    return f"made by {model.producer_name or 'an unnamed tool'} {model.producer_version}".rstrip()
