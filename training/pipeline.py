"""The eight steps from a recipe to a published version, as functions for programs; `__main__` is their command line.

    from training.pipeline import make
    make(recipe, data=own_data(...), body=MyNetwork())

docs/training.md shows the whole of it. Checked by tests/training/test_pipeline.py.
"""

import contextlib
import copy
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct
from rich.console import Console
from torch import nn

from models.manifest import MODEL_FILE, Manifest, ManifestError, check_files, read_manifest
from training.architectures import build, try_out, wrap
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, read_checkpoint, write_checkpoint
from training.data import SOURCES, DataSet, Source, first, load
from training.device import choose_device
from training.errors import Interrupted, RecipeInvalid, VersionUnknown
from training.evaluate import Score, evaluate
from training.export import export
from training.loop import Progress, Trained, train
from training.parallel import World, joined
from training.progress import shown
from training.publish import (
    Origin,
    choose_version,
    commit,
    described,
    highest_version,
    origin_of,
    publish,
    version_dir,
    versions,
)
from training.quantise import CALIBRATION_IMAGES, compare_speed, quantise
from training.recipes import Recipe, Scalar, as_scalars, check
from training.runs import events, new_run, stop_on_signals
from training.verify import verify, verify_quantised


class Options(Struct, frozen=True, kw_only=True):
    """Where things are and go.

    version   number to publish as; None for the next free one
    resume    a run's folder to go on with
    seeds     how many to train, from the recipe's on; the first is published, all are reported
    sign_key  signs what is published
    """

    data_dir: Path = Path("data")
    repository: Path = Path("models")
    runs: Path = Path("runs")
    version: int | None = None
    device: str = "auto"
    resume: Path | None = None
    seeds: int = 1
    sign_key: Ed25519PrivateKey | None = None


def make(
    recipe: Recipe,
    options: Options | None = None,
    console: Console | None = None,
    *,
    data: DataSet | None = None,
    body: nn.Module | None = None,
) -> Path | None:
    """One recipe to one published version; returns its folder, None in all processes but the first.

    data     instead of the recipe's; `training.data.own_data` makes one of arrays
    body     instead of the recipe's architecture: normalised float32 items → one number per label, or one number
    Raises   TrainingError
    """
    options, console = options or Options(), console or Console()
    check(recipe)
    with joined(choose_device(options.device)) as world:
        if not world.is_first:
            console = Console(quiet=True)
        version = choose_version(options.repository, recipe.name, options.version)
        data = first(loaded(recipe, options.data_dir, world) if data is None else data, recipe.limit)
        tries = [
            fit(msgspec.structs.replace(recipe, seed=recipe.seed + n), data, body, options, world, console)
            for n in range(options.seeds)
        ]
    if not world.is_first:
        return None
    trained = tries[0]
    tell(console, "Exporting, and measuring the file on the test set ...")
    scores = [evaluate(each.model, data) for each in tries]
    exported = export(trained.model, recipe, data.source)
    verified = verify(exported, trained.model, scores[0], data, recipe)
    facts = facts_of(recipe, data, body)
    metrics = verified.verification.metrics
    origin = origin_of(trained, facts, by_seed(recipe, scores))
    published = publish(
        *(verified, origin, data, described(data, facts, metrics)),
        *(recipe.name, options.repository, version, options.sign_key),
    )
    tell(console, f"\nPublished {recipe.name} version {version} in {published}")
    tested = f"{len(data.test_x):,} test items, measured with onnxruntime on the exported file"
    tell(console, f"  {worth(metrics)} on {tested}")
    tell(
        console,
        f"  within {verified.verification.max_abs_difference:.1g} of torch at batch sizes "
        f"{', '.join(map(str, verified.verification.batch_sizes))}; trained in {trained.seconds:.0f} s",
    )
    if options.seeds > 1:
        reached = np.array(list(origin.seeds.values()))
        tell(console, f"  {options.seeds} seeds: {reached.mean():.4f} on average, ± {reached.std(ddof=1):.4f} (1 sd)")
    tell(console, f"Report: {published / 'report.html'}\nNext: {command_to_serve(options.repository)}")
    return published


def command_to_serve(repository: Path) -> str:
    if repository == Options().repository:
        return "make serve"
    return shlex.join(["python", "-m", "service", "serve", "--repository", str(repository)])


def facts_of(recipe: Recipe, data: DataSet, body: nn.Module | None) -> dict[str, Scalar]:
    """The recipe for the manifest, with what was used where the caller brought data or network."""
    facts = as_scalars(recipe) | {"dataset": data.source.name}
    return facts if body is None else facts | {"architecture": type(body).__name__, "width": None}


def loaded(recipe: Recipe, data_dir: Path, world: World) -> DataSet:
    with world.first_goes_ahead():  # it downloads, and the others find the cache
        return load(source_of(recipe), data_dir)


def source_of(recipe: Recipe) -> Source:
    try:
        return SOURCES[recipe.dataset]
    except KeyError:
        raise RecipeInvalid(f"dataset {recipe.dataset!r} is none of {', '.join(SOURCES)}.") from None


def fit(
    recipe: Recipe, data: DataSet, body: nn.Module | None, options: Options, world: World, console: Console
) -> Trained:
    """Train one seed, with its checkpoint, events and progress display."""
    torch.manual_seed(recipe.seed)
    if body is None:
        model = build(recipe, data)
    else:  # a copy: every seed starts from the weights that came in, and they stay as they are
        model = try_out(wrap(copy.deepcopy(body), recipe, data.source), recipe, data.source)
    folder = options.resume or new_run(options.runs, recipe.name)
    resume = read_checkpoint(folder / CHECKPOINT_FILE) if options.resume else None
    many = f", {world.size} processes" if world.size > 1 else ""
    where = f"{world.device.type}{many}"
    tell(console, f"{data.source.title}: {len(data.train_x):,} items, {recipe.epochs} epochs on {where}")
    tell(console, f"Checkpoint and TensorBoard events in {folder}")

    def keep(checkpoint: Checkpoint) -> None:
        write_checkpoint(folder / CHECKPOINT_FILE, checkpoint)

    with watching(recipe, data.source, folder, world, console) as watch, stop_on_signals() as stop:
        try:
            return train(recipe, model, data, world, watch, keep=keep, resume=resume, stop=stop, source=commit())
        except Interrupted as interrupted:
            raise Interrupted(f"{interrupted}; nothing was published", folder) from None


@contextlib.contextmanager
def watching(
    recipe: Recipe, source: Source, folder: Path, world: World, console: Console
) -> Iterator[Callable[[Progress], None]]:
    """Display and events; neither outside the first process."""
    if not world.is_first:
        yield lambda progress: None
        return
    with shown(recipe, source, console) as display, events(folder) as write:

        def both(progress: Progress) -> None:
            display(progress)
            write(progress)

        yield both


def by_seed(recipe: Recipe, scores: list[Score]) -> dict[str, float]:
    """Accuracy or R² by seed; {} for a single one, whose figure is in the metrics."""
    if len(scores) == 1:
        return {}
    metric = "accuracy" if "accuracy" in scores[0].metrics else "r2"
    return {str(recipe.seed + n): score.metrics[metric] for n, score in enumerate(scores)}


def worth(metrics: dict[str, float]) -> str:
    return f"{metrics['accuracy']:.2%} right" if "accuracy" in metrics else f"R² {metrics['r2']:.4f}"


def make_quantised(name: str, of: int | None, options: Options, console: Console) -> Path:
    """An int8 version of a published image model, published as the next version of the same name.

    of       the version to start from; None for the highest that is not int8 itself
    Raises   VersionUnknown, VerificationFailed
    """
    folder, manifest = float_version(options.repository, name, of)
    of = manifest.version
    if manifest.dataset is None or manifest.dataset.name not in SOURCES or not manifest.classification:
        raise VersionUnknown(f"{folder} was not trained here on images: there is nothing to calibrate on.")
    version = choose_version(options.repository, name, options.version)
    data = load(SOURCES[manifest.dataset.name], options.data_dir)
    reference = (folder / MODEL_FILE).read_bytes()

    started_at = time.monotonic()
    small = quantise(reference, data.train_x)
    seconds = time.monotonic() - started_at
    speed = compare_speed(reference, small, data.test_x)
    verified = verify_quantised(small, reference, data, speed)
    metrics = verified.verification.metrics
    origin = Origin(
        recipe=(manifest.provenance.recipe if manifest.provenance else {})
        | {"quantised_from": of, "calibration_images": CALIBRATION_IMAGES},
        device="cpu",
        seconds=seconds,
        source=commit(),
    )
    faster = f"{speed.ratio:.1f} times as fast on a CPU"
    description = f"{data.source.title}: int8 of version {of}, {metrics['accuracy']:.2%} right, {faster}."
    published = publish(verified, origin, data, description, name, options.repository, version, options.sign_key)
    tell(console, f"Published {name} version {version} in {published}")
    tell(console, f"  {metrics['accuracy']:.2%} right, the float version {metrics['float_accuracy']:.2%}")
    tell(
        console,
        f"  {speed.reference_us:.0f} → {speed.candidate_us:.0f} us of CPU an image in batches of {speed.batch_size}: "
        f"{speed.ratio:.2f} times as fast",
    )
    return published


def float_version(repository: Path, name: str, wanted: int | None) -> tuple[Path, Manifest]:
    """Raises VersionUnknown."""
    highest_version(repository, name)
    for version in sorted(versions(repository, name), reverse=True) if wanted is None else [wanted]:
        folder = version_dir(repository, name, version)
        try:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
        except ManifestError as error:
            raise VersionUnknown(str(error)) from error
        if manifest.provenance is None or "quantised_from" not in manifest.provenance.recipe:
            return folder, manifest
    which = f"version {wanted} is" if wanted else "all its versions are"
    raise VersionUnknown(f"{repository / name}: {which} int8 already; --of names a float one.")


def tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
