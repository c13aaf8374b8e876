"""The model repository: lets a version serve only when it has shown that it works here.

What lies in it is `service/lifecycle/catalogue.py`'s to say. A version with a manifest is held to it: signature and
digests (contract.py), its tensors, then its golden rows replayed on this device within the manifest's tolerance. One
without (a bare ONNX file, Triton's layout) is served from what the file itself says.
Models without a batch axis, and those whose items turn out not to be independent, run item by item.
Whatever goes wrong is an UnservableModel with the reason; one bad version never keeps the others from serving.
"""

import logging
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from models.manifest import (
    MODEL_FILE,
    Golden,
    Manifest,
    TensorInput,
    TensorSpec,
    digest_file,
)
from service.batching.arena import Arena, ShapedRegion, create_arena, stride_bytes
from service.batching.link import ModelFacts
from service.engine.batch_axis import try_batch
from service.engine.bound import BoundInstance, can_bind
from service.engine.contract import check_tensors, read_contract
from service.engine.golden import check_golden, replay, row_count
from service.engine.gpu import GpuSession
from service.engine.instance import Instance
from service.engine.providers import Device, Gpu
from service.engine.session import RunFailed, Session, UnservableModel
from service.engine.tune import Setup, batch_sizes, choose_setup, planned_setup, take_setup, unmeasured_setup
from service.engine.tuned import TUNING_FILE, Knobs, TuningError, choose_entry, look_at_machine, read_tuning
from service.engine.warmup import write_warm_up_items
from service.lifecycle import catalogue
from service.lifecycle.catalogue import FoundVersion, RepositoryUnreadable
from service.lifecycle.messages import Overrides, Plan

log = logging.getLogger(__name__)

_ARENA_BYTES = 1 << 30  # virtual: a page costs memory once it is written
_MIN_CAPACITY = 16
# What a model's settings may decide and `tuning.json` would, by the setting's name.
_TUNED = {
    "instances": "engine.instances",
    "threads": "engine.threads",
    "max_batch_size": "batching.max_batch_size",
    "max_queue_delay_us": "batching.max_queue_delay_us",
}


@dataclass(frozen=True)
class ModelSettings:
    """How versions are loaded. Instances, threads None: find out by measuring.

    by_hand              names of the settings that were given and that `tuning.json` would decide; any puts it aside
    trusted_keys         Ed25519 public keys by fingerprint, one of which must have signed a version; None: nobody need
    max_queue_delay_us   a model's own; None: by `tuning.json`, else the service's
    timeout_ms           a model's own; None: the service's
    """

    device: Device
    cores: int
    max_batch_size: int
    max_queue_items: int
    max_row_bytes: int
    instances: int | None
    threads: int | None
    tune_budget_s: float
    by_hand: tuple[str, ...] = ()
    gpu: Gpu = field(default_factory=Gpu)  # where device is not the CPU
    trusted_keys: Mapping[str, bytes] | None = None
    max_queue_delay_us: int | None = None
    timeout_ms: int | None = None


@dataclass(frozen=True)
class LoadedVersion:
    """Ready to serve: loaded, warm, its golden rows replayed.

    arena_fd   the owner's to close
    key_of     a committed slot's key: items of unequal keys must not share a batch; None: all are alike
    max_queue_delay_us   this version's own, by its model's settings or `tuning.json`; None: the service's
    """

    facts: ModelFacts
    arena_fd: int
    setup: Setup
    key_of: Callable[[int], Hashable] | None
    golden_rows: int
    seconds: float
    max_queue_delay_us: int | None = None


def find_versions(repository: Path) -> list[FoundVersion]:
    """Of every model the newest version that its policy allows, by name. Raises UnservableModel."""
    try:
        return catalogue.find_versions(repository)
    except RepositoryUnreadable as error:
        raise UnservableModel(str(error)) from error


def with_overrides(settings: ModelSettings, overrides: Overrides) -> ModelSettings:
    """As a model's own settings want it; what they say counts as given by hand."""
    given = {name: value for name, value in msgspec.structs.asdict(overrides).items() if value is not None}
    by_hand = dict.fromkeys((*settings.by_hand, *overrides_by_hand(overrides)))
    return replace(settings, **given, by_hand=tuple(by_hand))


def overrides_by_hand(overrides: Overrides) -> tuple[str, ...]:
    """Those of the settings that `tuning.json` would decide and a model's own settings do: "engine.threads"."""
    return tuple(setting for name, setting in _TUNED.items() if getattr(overrides, name) is not None)


def load_version(found: FoundVersion, settings: ModelSettings, plan: Plan | None = None) -> LoadedVersion:
    """Load, warm up, measure, replay golden rows. Raises UnservableModel with the reason.

    plan   how to run it, where its tensors are those of the plan: then nothing is measured
    """
    begun = time.monotonic()
    if found.refused:
        raise UnservableModel(found.refused)
    settings = with_overrides(settings, found.overrides)
    manifest, golden = read_contract(found.path, found.name, found.version, settings.trusted_keys)
    model = found.path / MODEL_FILE
    if not model.is_file():
        raise UnservableModel(f"{MODEL_FILE} is missing")
    first = open_session(model, settings, settings.threads or 1)
    if manifest is not None:
        check_tensors(first, manifest)
    if golden is not None:
        check_golden(first, golden, first.batch_axis_by_name)
    batch_axis, largest_batch = _batching(found, first, manifest, golden, settings)
    capacity = arena_capacity(first.inputs + first.outputs, batch_axis, settings)
    arena_fd, arena = create_arena(first.inputs, first.outputs, capacity, batch_axis, settings.max_row_bytes)
    tuned = _tuned(found, settings)
    if plan is not None and (plan.inputs, plan.outputs) != (first.inputs, first.outputs):
        plan = None
    largest_batch = min(largest_batch, capacity)
    try:
        setup = _choose_setup(found, first, arena, golden, batch_axis, largest_batch, settings, tuned, plan)
        for instance in setup.instances:
            if golden is not None and manifest is not None:
                replay(instance.session, golden, manifest.tolerance, batch_axis)
    except BaseException as error:
        os.close(arena_fd)
        if isinstance(error, RunFailed):
            raise UnservableModel(f"a run failed on the golden rows: {error}") from error
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
            items_per_s=setup.rates.get(setup.max_batch_size, 1.0),
            batch_axis=batch_axis,
            max_row_bytes=settings.max_row_bytes,
            timeout_ms=settings.timeout_ms,
        ),
        arena_fd=arena_fd,
        setup=setup,
        key_of=partial(_shapes, tuple(arena.shaped_inputs.values())) if arena.shaped_inputs else None,
        golden_rows=row_count(golden) if golden else 0,
        seconds=time.monotonic() - begun,
        max_queue_delay_us=tuned.max_queue_delay_us if tuned else settings.max_queue_delay_us,
    )


def plan_of(loaded: LoadedVersion) -> Plan:
    """How it is run, for another engine or the next version."""
    setup, facts = loaded.setup, loaded.facts
    return Plan(len(setup.instances), setup.threads, setup.max_batch_size, setup.rates, facts.inputs, facts.outputs)


def open_session(model: Path, settings: ModelSettings, threads: int) -> Session:
    """Raises UnservableModel."""
    if settings.device == "cpu":
        return Session(model, threads)
    return GpuSession(model, settings.device, settings.gpu)


def arena_capacity(specs: tuple[TensorSpec, ...], batch_axis: bool, settings: ModelSettings) -> int:
    """Slots for `max_queue_items`, fewer where rows are so large that the arena would pass its bound."""
    fitting = _ARENA_BYTES // max(1, sum(stride_bytes(spec, batch_axis, settings.max_row_bytes) for spec in specs))
    return min(settings.max_queue_items, max(_MIN_CAPACITY, fitting))


def _batching(
    found: FoundVersion, session: Session, manifest: Manifest | None, golden: Golden | None, settings: ModelSettings
) -> tuple[bool, int]:
    """Whether dimension 0 counts items, and the most that may run together.

    With a manifest it does: that is the contract. If such items are not independent, each runs alone.
    """
    if not session.batch_axis_by_name:
        return False, 1
    if try_batch(session, golden, settings.max_row_bytes) != "dependent":
        return True, settings.max_batch_size
    log.warning(
        "model %s version %s: an item's answer depends on what else is in the batch, so %s",
        *(found.name, found.version),
        "items run one by one" if manifest else "its first dimension is none and each request runs alone",
    )
    return manifest is not None, 1


def _choose_setup(
    found: FoundVersion,
    first: Session,
    arena: Arena,
    golden: Golden | None,
    batch_axis: bool,
    largest_batch: int,
    settings: ModelSettings,
    tuned: Knobs | None,
    plan: Plan | None,
) -> Setup:
    """What `plan` says, what `tune` found, else by measuring.

    What fails on golden rows is refused (RunFailed); what fails on invented items proves nothing.
    """
    spare = [first] if settings.device != "cpu" or (settings.threads or 1) == 1 else []
    if tuned:
        largest_batch = min(largest_batch, tuned.max_batch_size)

    def make(threads: int) -> Instance:
        session = spare.pop() if spare and threads == 1 else open_session(found.path / MODEL_FILE, settings, threads)
        if isinstance(session, GpuSession) and can_bind(session.inputs, session.outputs, batch_axis):
            return BoundInstance(session, arena, largest_batch, batch_axis)
        return Instance(session, arena, largest_batch, batch_axis)

    def make_warm(threads: int) -> Instance:
        instance = make(threads)
        if isinstance(instance, BoundInstance):
            instance.warm_up()
        return instance

    fixed = _fixed_setup(settings)
    try:
        write_warm_up_items(first, arena, golden, batch_axis, largest_batch, settings.max_row_bytes)
        if plan:
            batch = min(plan.max_batch_size, largest_batch)
            setup = planned_setup(make_warm, plan.instances, plan.threads, batch, plan.rates)
        elif tuned:
            beside = batch_sizes(largest_batch) if isinstance(first, GpuSession) else []
            setup = take_setup(make_warm, tuned.instances, tuned.threads, largest_batch, settings.tune_budget_s, beside)
        else:
            setup = choose_setup(make_warm, settings.cores, largest_batch, fixed, settings.tune_budget_s)
    except RunFailed as error:
        if golden is not None:
            raise
        log.warning(
            "model %s version %s is served without having been measured: a run on invented items failed: %s",
            *(found.name, found.version, error),
        )
        return unmeasured_setup(make, settings.cores, largest_batch, fixed)
    for instance in setup.instances:
        if isinstance(instance, BoundInstance):
            instance.learn(setup.seconds)
    return setup


def _shapes(inputs: Sequence[ShapedRegion], slot: int) -> Hashable:
    """What items must have in common to share a batch."""
    return tuple(region.shape(slot) for region in inputs)


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
    """What the settings leave no choice about; a GPU has one instance, whose thread only hands work to it."""
    if settings.device != "cpu":
        return settings.instances or 1, 1
    if settings.instances is None and settings.threads is None:
        return None
    if settings.instances is None:
        assert settings.threads is not None
        return max(1, settings.cores // settings.threads), settings.threads
    return settings.instances, settings.threads or max(1, settings.cores // settings.instances)
