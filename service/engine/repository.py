"""The model repository: finds versions, and lets one serve only when it has shown that it works here.

    <repository>/<name>/<version>/model.onnx      version: a positive integer; the highest of each name is served

A version with a manifest is held to it: digests, then signature, then its golden rows replayed on this device within
the manifest's tolerance. One without (a bare ONNX file, Triton's layout) is served from what the file itself says.
Whatever goes wrong is an UnservableModel with the reason; one bad version never keeps the others from serving.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    NUMPY_OF,
    Golden,
    ImageInput,
    Manifest,
    ManifestError,
    TensorInput,
    TensorSpec,
    Tolerance,
    check_files,
    digest_file,
    read_golden,
    read_manifest,
)
from service.batching.arena import create_arena, row_bytes
from service.batching.link import ModelFacts
from service.engine.instance import Instance
from service.engine.session import Device, RunFailed, Session, UnservableModel
from service.engine.tune import Setup, choose_setup, take_setup
from service.engine.tuned import TUNING_FILE, Knobs, TuningError, choose_entry, look_at_machine, read_tuning

log = logging.getLogger(__name__)

_ARENA_BYTES = 1 << 30  # virtual: a page costs memory once it is written
_MIN_CAPACITY = 16


@dataclass(frozen=True)
class ModelSettings:
    """How versions are loaded, for all models alike. None: find out by measuring.

    by_hand   names of the settings that were given and that `tuning.json` would decide; any of them puts it aside
    """

    device: Device
    cores: int
    max_batch_size: int
    max_queue_items: int
    instances: int | None
    threads: int | None
    tune_budget_s: float
    by_hand: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundVersion:
    name: str
    version: str
    path: Path


@dataclass(frozen=True)
class LoadedVersion:
    """Ready to serve: loaded, warm, its golden rows replayed. `arena_fd` is the owner's to close.

    max_queue_delay_us   this version's own, by `tuning.json`; None: the setting's
    """

    facts: ModelFacts
    arena_fd: int
    setup: Setup
    golden_rows: int
    seconds: float
    max_queue_delay_us: int | None = None


def find_versions(repository: Path) -> list[FoundVersion]:
    """The newest version of every model, by name. Raises UnservableModel when the repository cannot be read."""
    try:
        names = sorted(path for path in repository.iterdir() if path.is_dir())
    except OSError as error:
        raise UnservableModel(f"model repository {repository}: {error.strerror}") from error
    found = []
    for path in names:
        versions = [v for v in path.iterdir() if v.is_dir() and v.name.isdecimal() and int(v.name) > 0]
        if versions:
            newest = max(versions, key=lambda version: int(version.name))
            found.append(FoundVersion(path.name, newest.name, newest))
    return found


def load_version(found: FoundVersion, settings: ModelSettings) -> LoadedVersion:
    """Load, warm up, measure, replay golden rows. Raises UnservableModel with the reason."""
    begun = time.monotonic()
    manifest, golden = _read_contract(found.path)
    model = found.path / MODEL_FILE
    if not model.is_file():
        raise UnservableModel(f"{MODEL_FILE} is missing")
    first = Session(model, settings.device, settings.threads or 1)
    if manifest is not None:
        _check_signature(first, manifest)
    if golden is not None:
        _check_golden(first, golden)
    capacity = arena_capacity(first.inputs + first.outputs, settings)
    arena_fd, arena = create_arena(first.inputs, first.outputs, capacity)
    tuned = _tuned(found, settings)
    max_batch_size = min(tuned.max_batch_size if tuned else settings.max_batch_size, capacity)
    spare = [first] if (settings.threads or 1) == 1 else []

    def make(threads: int) -> Instance:
        session = spare.pop() if spare and threads == 1 else Session(model, settings.device, threads)
        return Instance(session, arena, max_batch_size)

    try:
        if tuned:
            setup = take_setup(make, tuned.instances, tuned.threads, max_batch_size, settings.tune_budget_s)
        else:
            fixed = _fixed_setup(settings)
            setup = choose_setup(make, settings.cores, max_batch_size, fixed, settings.tune_budget_s)
        for instance in setup.instances:
            if golden is not None and manifest is not None:
                replay(instance.session, golden, manifest.tolerance)
    except BaseException as error:
        os.close(arena_fd)
        if isinstance(error, RunFailed):
            raise UnservableModel(f"a run failed while the model was warmed up: {error}") from error
        raise
    return LoadedVersion(
        facts=ModelFacts(
            name=found.name,
            version=found.version,
            description=manifest.description if manifest else first.description,
            inputs=first.inputs,
            outputs=first.outputs,
            input=manifest.input if manifest else TensorInput(),
            classification=manifest.classification if manifest else None,
            capacity=capacity,
            max_batch_size=setup.max_batch_size,
            instances=len(setup.instances),
            threads=setup.threads,
        ),
        arena_fd=arena_fd,
        setup=setup,
        golden_rows=_row_count(golden) if golden else 0,
        seconds=time.monotonic() - begun,
        max_queue_delay_us=tuned.max_queue_delay_us if tuned else None,
    )


def arena_capacity(specs: tuple[TensorSpec, ...], settings: ModelSettings) -> int:
    """Slots for `max_queue_items`, fewer where rows are so large that the arena would pass its bound."""
    fitting = _ARENA_BYTES // sum(row_bytes(spec) for spec in specs)
    return min(settings.max_queue_items, max(_MIN_CAPACITY, fitting))


def replay(session: Session, golden: Golden, tolerance: Tolerance) -> None:
    """Run the golden rows, all at once and the first alone. Raises UnservableModel when one is out of tolerance."""
    for n in {1, _row_count(golden)}:
        outputs = session.run({name: rows[:n] for name, rows in golden.inputs.items()})
        for spec, output in zip(session.outputs, outputs, strict=True):
            expected = golden.outputs[spec.name][:n]
            if output.shape != expected.shape or not np.allclose(
                output, expected, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True
            ):
                raise UnservableModel(
                    f"golden rows: output {spec.name!r} differs from the published answers by up to "
                    f"{_largest_difference(output, expected)}; tolerance {tolerance.absolute} + "
                    f"{tolerance.relative} x |value|"
                )


def _read_contract(path: Path) -> tuple[Manifest | None, Golden | None]:
    if not (path / MANIFEST_FILE).exists():
        return None, None
    try:
        manifest = read_manifest(path)
        check_files(path, manifest)
        golden = read_golden(path) if GOLDEN_FILE in manifest.files else None
    except ManifestError as error:
        raise UnservableModel(str(error)) from error
    return manifest, golden


def _check_signature(session: Session, manifest: Manifest) -> None:
    for side, found, listed in (
        ("inputs", session.inputs, manifest.inputs),
        ("outputs", session.outputs, manifest.outputs),
    ):
        if found != listed:
            raise UnservableModel(f"{MANIFEST_FILE}: {side} {list(listed)} are not those of the file: {list(found)}")
    match manifest.input:
        case ImageInput(height=height, width=width, channels=channels):
            expected = (-1, height, width, channels)
            if len(session.inputs) != 1 or session.inputs[0].shape != expected or session.inputs[0].datatype != "UINT8":
                raise UnservableModel(f"{MANIFEST_FILE}: input: an image model takes one UINT8 {list(expected)} tensor")
    if (labelled := manifest.classification) is not None:
        scores = next((spec for spec in session.outputs if spec.name == labelled.output), None)
        if scores is None or scores.shape != (-1, len(labelled.labels)):
            raise UnservableModel(
                f"{MANIFEST_FILE}: classification: output {labelled.output!r} with {len(labelled.labels)} labels "
                f"does not fit the file's outputs {list(session.outputs)}"
            )


def _check_golden(session: Session, golden: Golden) -> None:
    """Rows for every input and output, at least one, equally many, of the model's types and shapes."""
    n_rows = {len(array) if array.ndim else 0 for array in (*golden.inputs.values(), *golden.outputs.values())}
    if len(n_rows) != 1 or n_rows == {0}:
        raise UnservableModel(
            f"{GOLDEN_FILE}: arrays of {sorted(n_rows)} rows; expected at least one, and as many in all"
        )
    for side, specs, arrays in (
        ("inputs", session.inputs, golden.inputs),
        ("outputs", session.outputs, golden.outputs),
    ):
        found = {name: (str(array.dtype), array.shape[1:]) for name, array in arrays.items()}
        expected = {spec.name: (str(NUMPY_OF[spec.datatype]), spec.shape[1:]) for spec in specs}
        if found != expected:
            raise UnservableModel(f"{GOLDEN_FILE}: {side} are {found}; expected {expected}")


def _tuned(found: FoundVersion, settings: ModelSettings) -> Knobs | None:
    """What `tune` chose for this file on this machine, where it did and the settings leave it the choice."""
    folder = found.path.parent
    if not (folder / TUNING_FILE).exists():
        return None
    try:
        tuning = read_tuning(folder)
    except TuningError as error:
        log.warning("%s; the set-up is chosen by measuring", error)
        return None
    machine = look_at_machine(settings.device, settings.cores)
    tuned = choose_entry(tuning, digest_file(found.path / MODEL_FILE).sha256, machine, settings.by_hand)
    if tuned.why:
        log.info("model %s version %s: %s", found.name, found.version, tuned.why)
    return tuned.knobs


def _fixed_setup(settings: ModelSettings) -> tuple[int, int] | None:
    """What the settings leave no choice about; a GPU has one instance, which owns the device."""
    if settings.device == "cuda":
        return settings.instances or 1, settings.threads or 1
    if settings.instances is None and settings.threads is None:
        return None
    if settings.instances is None:
        assert settings.threads is not None
        return max(1, settings.cores // settings.threads), settings.threads
    return settings.instances, settings.threads or max(1, settings.cores // settings.instances)


def _row_count(golden: Golden) -> int:
    return len(next(iter(golden.inputs.values())))


def _largest_difference(output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if output.shape != expected.shape:
        return float("inf")
    return float(np.abs(output.astype(np.float64) - expected.astype(np.float64)).max())
