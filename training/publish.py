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
from pathlib import Path

import msgspec
import numpy
import onnx
import onnxruntime
import onnxscript
import torch
from PIL import Image

from models.manifest import (
    EXAMPLE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Classification,
    ImageInput,
    Manifest,
    Provenance,
    TensorSpec,
    Tolerance,
    digest_file,
    write_golden,
    write_manifest,
)
from models.manifest import DataSet as DataSetFacts
from training.data import DataSet
from training.errors import VersionExists
from training.export import INPUT, LOGITS, PROBABILITIES
from training.loop import Trained
from training.recipes import Recipe, as_scalars
from training.verify import Verified

CHECKPOINT_FILE = "checkpoint.pt"
HISTORY_FILE = "history.json"

# Golden rows are answered by other devices than the one that wrote them. A GPU that multiplies in TF32 rounds every
# factor to 10 bits of mantissa: doing so to mnist/1 on a CPU moved the logits of 1,000 test images, up to 5, by 0.003
# at most, and the probabilities by 0.001 (loadtests/records/2026-11-23_tf32). A wrong graph moves them by whole units.
TOLERANCE = Tolerance(absolute=1e-2, relative=1e-2)


def publish(
    verified: Verified, trained: Trained, data: DataSet, recipe: Recipe, repository: Path, version: int
) -> Path:
    """Returns the folder of the version. Raises VersionExists, having changed nothing."""
    assert isinstance(verified, Verified), "bug: only what verify() returned is published"
    target = version_dir(repository, recipe.name, version)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{version}-"))
    try:
        staging.chmod(0o755)  # mkdtemp gives 0700; the service often runs as somebody else
        write_files(staging, verified, trained, data)
        write_manifest(staging, manifest_of(staging, verified, trained, data, recipe, version))
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
    folder = repository / name
    taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def refuse_existing(target: Path) -> None:
    if target.exists():
        raise VersionExists(
            f"{target} exists, and a published version never changes. Leave --version out for the next free number."
        )


def write_files(folder: Path, verified: Verified, trained: Trained, data: DataSet) -> None:
    (folder / MODEL_FILE).write_bytes(verified.onnx)
    write_golden(folder, verified.golden)
    Image.fromarray(data.test_x[0].squeeze()).save(folder / EXAMPLE_FILE)
    torch.save(trained.model.state_dict(), folder / CHECKPOINT_FILE)
    history = msgspec.json.format(msgspec.json.encode(trained.history), indent=2)
    (folder / HISTORY_FILE).write_bytes(history + b"\n")


def manifest_of(
    folder: Path, verified: Verified, trained: Trained, data: DataSet, recipe: Recipe, version: int
) -> Manifest:
    source = data.source
    height, width, channels = source.shape
    metrics = verified.verification.metrics
    return Manifest(
        name=recipe.name,
        version=version,
        description=f"{source.title}: {recipe.architecture} of width {recipe.width}, {metrics['accuracy']:.2%} right.",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        inputs=(TensorSpec(INPUT, "UINT8", (-1, *source.shape)),),
        outputs=tuple(TensorSpec(name, "FP32", (-1, len(source.labels))) for name in (LOGITS, PROBABILITIES)),
        input=ImageInput(height=height, width=width, channels=1 if channels == 1 else 3),
        classification=Classification(PROBABILITIES, source.labels),
        metrics=metrics,
        tolerance=TOLERANCE,
        files={path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_FILE},
        dataset=DataSetFacts(source.name, source.sha256, len(data.train_x), len(data.test_x)),
        verification=verified.verification,
        provenance=Provenance(
            recipe=as_scalars(recipe),
            source=commit(),
            device=trained.device,
            seconds=round(trained.seconds, 1),
            packages=packages(),
        ),
    )


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
    modules = {"numpy": numpy, "onnx": onnx, "onnxruntime": onnxruntime, "onnxscript": onnxscript, "torch": torch}
    return {"python": platform.python_version()} | {name: str(module.__version__) for name, module in modules.items()}
