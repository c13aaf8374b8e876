"""Writes a verified model as the next version of the repository, in one step: it is there whole, or not at all.

    <repository>/<name>/.<version>-xxxx/   written first, beside
    <repository>/<name>/<version>/         by rename; never onto something that exists

No file names a folder of the machine that trained. Checked by tests/training/test_publish.py.
"""

import datetime
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import onnxscript
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct
from PIL import Image

from models.manifest import (
    DATATYPE_OF,
    EXAMPLE_FILE,
    EXAMPLE_ROW_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Classification,
    FileDigest,
    ImageInput,
    Manifest,
    Provenance,
    TensorInput,
    TensorSpec,
    digest_file,
    write_golden,
    write_manifest,
)
from models.manifest import DataSet as DataSetFacts
from models.signature import write_signature
from training.checkpoint import serialised
from training.data import DataSet, Source
from training.errors import VersionExists, VersionUnknown, naming
from training.loop import Progress, Trained
from training.recipes import Scalar
from training.report import Answers, Classified, Regressed, write_report
from training.verify import Verified

WEIGHTS_FILE = "checkpoint.pt"
REPORT_FILE = "report.html"
HISTORY_FILE = "history.json"


class Origin(Struct, frozen=True):
    """How a verified graph came to be.

    recipe    as the manifest keeps it
    history   one record per epoch; () where nothing was trained, and `weights`, a state_dict, None
    seeds     accuracy or R² by seed, where the recipe was run with several
    """

    recipe: dict[str, Scalar]
    device: str
    seconds: float
    source: str
    history: tuple[Progress, ...] = ()
    weights: dict[str, torch.Tensor] | None = None
    seeds: dict[str, float] = {}
    parameters: int | None = None


def origin_of(trained: Trained, recipe: dict[str, Scalar], seeds: dict[str, float]) -> Origin:
    return Origin(
        recipe=recipe,
        device=trained.device,
        seconds=trained.seconds,
        source=", ".join(trained.source),
        history=trained.history,
        weights=trained.model.state_dict(),
        seeds=seeds,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
    )


def publish(
    verified: Verified,
    origin: Origin,
    data: DataSet,
    description: str,
    name: str,
    repository: Path,
    version: int,
    sign_key: Ed25519PrivateKey | None = None,
) -> Path:
    """Returns the folder of the version. Raises VersionExists, having changed nothing."""
    assert isinstance(verified, Verified), "bug: only what verify() returned is published"

    def write(folder: Path) -> None:
        write_files(folder, verified, origin, data)
        manifest = manifest_of(folder, verified, origin, data, description, name, version)
        write_report(folder / REPORT_FILE, manifest, origin.history, report_answers(verified, data), origin.parameters)
        write_manifest(folder, msgspec.structs.replace(manifest, files=digests(folder)))

    return place(repository, name, version, write, sign_key)


def place(
    repository: Path,
    name: str,
    version: int,
    write: Callable[[Path], None],
    sign_key: Ed25519PrivateKey | None = None,
) -> Path:
    """A version folder whose files `write` makes, signed where a key is given: there whole, or not at all.

    Raises   VersionExists
    """
    target = version_dir(repository, name, version)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{version}-"))
    try:
        staging.chmod(0o755)  # mkdtemp gives 0700; the service often runs as somebody else
        with naming(target):
            write(staging)
            if sign_key is not None:
                write_signature(staging, sign_key)
        refuse_existing(target)
        try:
            staging.rename(target)
        except OSError as error:  # somebody published the same number in between: rename spares a folder with content
            raise VersionExists(f"{target} appeared while this run was publishing; run again for the next.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def version_dir(repository: Path, name: str, version: int) -> Path:
    return repository / name / str(version)


def choose_version(repository: Path, name: str, wanted: int | None) -> int:
    """`wanted`, else one more than the highest there is. Asked before training, so that a clash costs no hours.

    Raises   VersionExists
    """
    if wanted is not None:
        refuse_existing(version_dir(repository, name, wanted))
        return wanted
    return max(versions(repository, name), default=0) + 1


def versions(repository: Path, name: str) -> list[int]:
    folder = repository / name
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def highest_version(repository: Path, name: str) -> int:
    """Raises VersionUnknown where there is none."""
    taken = versions(repository, name)
    if not taken:
        raise VersionUnknown(f"{repository / name} holds no version; `python -m training list` shows what there is.")
    return max(taken)


def refuse_existing(target: Path) -> None:
    if target.exists():
        raise VersionExists(
            f"{target} exists, and a published version never changes. Leave --version out for the next free number."
        )


def write_files(folder: Path, verified: Verified, origin: Origin, data: DataSet) -> None:
    (folder / MODEL_FILE).write_bytes(verified.onnx)
    write_golden(folder, verified.golden)
    if data.source.labels:
        Image.fromarray(data.test_x[0].squeeze()).save(folder / EXAMPLE_FILE)
    else:
        (folder / EXAMPLE_ROW_FILE).write_bytes(msgspec.json.encode({"instances": data.test_x[:1].tolist()}) + b"\n")
    if origin.weights is not None:
        (folder / WEIGHTS_FILE).write_bytes(serialised(origin.weights))
    if origin.history:
        history = msgspec.json.format(msgspec.json.encode(origin.history), indent=2)
        (folder / HISTORY_FILE).write_bytes(history + b"\n")


def manifest_of(
    folder: Path, verified: Verified, origin: Origin, data: DataSet, description: str, name: str, version: int
) -> Manifest:
    source = data.source
    return Manifest(
        name=name,
        version=version,
        description=description,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        inputs=tuple(specs_of(verified.golden.inputs)),
        outputs=tuple(specs_of(verified.golden.outputs)),
        input=input_of(source),
        classification=Classification("probabilities", source.labels) if source.labels else None,
        metrics=verified.verification.metrics,
        tolerance=verified.tolerance,
        files=digests(folder),
        dataset=DataSetFacts(source.name, source.sha256, len(data.train_x), len(data.test_x)),
        verification=verified.verification,
        provenance=Provenance(
            recipe=origin.recipe,
            source=origin.source,
            device=origin.device,
            seconds=round(origin.seconds, 1),
            packages=packages(),
            seeds=origin.seeds,
        ),
    )


def specs_of(rows: Mapping[str, npt.NDArray[np.generic]]) -> Iterator[TensorSpec]:
    """Of golden rows, whose leading axis is the batch."""
    for name, array in rows.items():
        yield TensorSpec(name, DATATYPE_OF[array.dtype.name], (-1, *array.shape[1:]))


def input_of(source: Source) -> ImageInput | TensorInput:
    if not source.labels:
        return TensorInput(source.features)
    height, width, channels = source.shape
    return ImageInput(height=height, width=width, channels=1 if channels == 1 else 3)


def digests(folder: Path) -> dict[str, FileDigest]:
    return {path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE}


def report_answers(verified: Verified, data: DataSet) -> Answers:
    if data.source.labels:
        return Classified(
            images=data.test_x,
            labels=data.test_y,
            logits=verified.answers["logits"],
            probabilities=verified.answers["probabilities"],
        )
    return Regressed(
        targets=data.test_y,
        predictions=verified.answers["prediction"][:, 0],
        features=data.test_x,
        coefficients=verified.coefficients,
        unit=data.source.unit,
        feature_names=data.source.features,
    )


def described(data: DataSet, recipe: Mapping[str, Scalar], metrics: Mapping[str, float]) -> str:
    """One sentence for lists."""
    sized = recipe["width"] is not None and recipe["architecture"] != "linear"
    size = f" of width {recipe['width']}" if sized else ""
    worth = f"{metrics['accuracy']:.2%} right" if "accuracy" in metrics else f"R² {metrics['r2']:.3f}"
    return f"{data.source.title}: {recipe['architecture']}{size}, {worth}."


def commit() -> str:
    """Of the checkout this file is in, "-dirty" where tracked files differ from it; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(  # noqa: S603  # a constant command; git is whichever the person uses
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"


def packages() -> dict[str, str]:
    modules = {"numpy": np, "onnx": onnx, "onnxruntime": onnxruntime, "onnxscript": onnxscript, "torch": torch}
    return {"python": platform.python_version()} | {name: str(module.__version__) for name, module in modules.items()}
