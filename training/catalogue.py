"""What a repository holds, for people: `python -m training list` and `show`.

Checked by tests/training/test_catalogue.py.
"""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    Manifest,
    ManifestError,
    TensorSpec,
    check_files,
    read_manifest,
)
from training.errors import VersionUnknown
from training.publish import highest_version, version_dir


def print_catalogue(repository: Path, console: Console) -> None:
    """One line per version, the highest of each model last."""
    table = Table("model", "version", "score", "model.onnx", "what it is", box=None, header_style="bold")
    for column in table.columns[1:4]:
        column.justify = "right"
    for folder in version_folders(repository):
        table.add_row(*map(Text, line(folder)))  # Text: nothing in a description is markup
    if not table.row_count:
        raise VersionUnknown(f"{repository} holds no model; `python -m training mnist` makes one.")
    console.print(table)


def line(folder: Path) -> tuple[str, ...]:
    model = folder / MODEL_FILE
    size = readable(model.stat().st_size) if model.is_file() else ""
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        reason = str(error) if (folder / MANIFEST_FILE).exists() else "no manifest"
        return folder.parent.name, folder.name, "", size, reason
    return manifest.name, str(manifest.version), score(manifest), size, manifest.description


def version_folders(repository: Path) -> Iterator[Path]:
    if not repository.is_dir():
        raise VersionUnknown(f"{repository} is not a folder; --repository names another.")
    for model in sorted(path for path in repository.iterdir() if path.is_dir()):
        numbered = (path for path in model.iterdir() if path.name.isdecimal() and path.is_dir())
        yield from sorted(numbered, key=lambda path: int(path.name))


def print_version(repository: Path, wanted: str, console: Console) -> None:
    """`wanted` as for `chosen_folder`. Raises VersionUnknown."""
    folder = chosen_folder(repository, wanted)
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
    except ManifestError as error:
        raise VersionUnknown(str(error)) from error
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    for title, value in facts(manifest, folder):
        table.add_row(title, Text(value))
    console.print(table)


def chosen_folder(repository: Path, wanted: str) -> Path:
    """`wanted` is a name, for its highest version, or name/version. Raises VersionUnknown."""
    name, _, number = wanted.partition("/")
    if number and not number.isdecimal():
        raise VersionUnknown(f"{wanted}: expected a model's name, or name/version with a whole number.")
    return version_dir(repository, name, int(number) if number else highest_version(repository, name))


def facts(manifest: Manifest, folder: Path) -> Iterator[tuple[str, str]]:
    yield "model", f"{manifest.name} version {manifest.version}, made {manifest.created_at}"
    yield "", manifest.description
    yield "inputs", "\n".join(map(described, manifest.inputs))
    yield "outputs", "\n".join(map(described, manifest.outputs))
    if manifest.classification:
        yield "labels", ", ".join(manifest.classification.labels)
    yield "metrics", "\n".join(f"{name} {value:.6g}" for name, value in manifest.metrics.items())
    if manifest.dataset:
        seen = manifest.dataset
        yield "data", f"{seen.name}, {seen.train_items:,} training and {seen.test_items:,} test items, {seen.sha256}"
    if manifest.verification:
        seen_by = manifest.verification
        sizes = ", ".join(map(str, seen_by.batch_sizes))
        yield "verified", f"within {seen_by.max_abs_difference:.2g} at batch sizes {sizes}"
    if manifest.provenance:
        origin = manifest.provenance
        yield "recipe", ", ".join(f"{name}={value}" for name, value in origin.recipe.items())
        made = "quantised" if "quantised_from" in origin.recipe else "trained"
        yield made, f"in {origin.seconds:,.0f} s on {origin.device}, at {origin.source}"
        if origin.seeds:
            yield "seeds", ", ".join(f"{seed}: {reached:.4f}" for seed, reached in origin.seeds.items())
    yield "files", "\n".join(f"{folder / name}  {file.bytes:,} bytes" for name, file in manifest.files.items())


def described(tensor: TensorSpec) -> str:
    return f"{tensor.name}  {tensor.datatype} {list(tensor.shape)}"


def score(manifest: Manifest) -> str:
    if "accuracy" in manifest.metrics:
        return f"{manifest.metrics['accuracy']:.2%}"
    return f"R² {manifest.metrics['r2']:.3f}" if "r2" in manifest.metrics else ""


def readable(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
