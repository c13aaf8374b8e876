"""Buckets bound to a session of the CPU's provider: everything of the GPU path but CUDA itself.

The CPU's provider takes the graph number of a run and does nothing with it, so capturing is three runs like others.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from msgspec import structs

from models.manifest import MODEL_FILE, NUMPY_OF
from service.batching.arena import Arena, create_arena
from service.engine import bound, pinned, repository
from service.engine.bound import BoundInstance, DeviceLost, can_bind
from service.engine.gpu import GpuSession, assigned_nodes
from service.engine.instance import Instance
from service.engine.pinned import Memory
from service.engine.providers import Gpu, Node
from service.engine.repository import FoundVersion, load_version
from service.engine.session import RunFailed, Session, UnservableModel
from service.engine.tuned import Knobs
from tests.integration.conftest import SETTINGS
from tests.support.build_models import build_repository

BUNDLED = sorted((Path(__file__).parents[2] / "models").glob("*/*/model.onnx"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("models"))


def open_bound(path: Path, largest: int, graphs: bool = False) -> tuple[BoundInstance, Arena]:
    session = GpuSession(path, "cpu", Gpu())
    session.graphs = graphs
    _, arena = create_arena(session.inputs, session.outputs, 32)
    return BoundInstance(session, arena, largest), arena


def fill(arena: Arena, session: Session, slots: range, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for spec in session.inputs:
        rows = arena.inputs[spec.name].array
        rows[slots] = generator.integers(0, 100, rows[slots].shape).astype(NUMPY_OF[spec.datatype])


class StagedMemory(Memory):
    """Copies to and from a device that is the CPU under another name, and counts them."""

    def __init__(self, kind: pinned.Kind) -> None:
        super().__init__(kind, 0, None)

    def _on_device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type)


def copy_tensors(sources: list[Any], targets: list[Any]) -> None:
    """onnxruntime has none between two values of the CPU."""
    for source, target in zip(sources, targets, strict=True):
        target.update_inplace(source.numpy())


@pytest.fixture(params=["host", "pageable", "pinned"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "host":
        monkeypatch.setattr(bound, "memory_for", lambda *_: StagedMemory(request.param))
    monkeypatch.setattr(ort, "copy_tensors", copy_tensors)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parents[1].name}-{path.parent.name}")
def test_every_size_is_answered_as_by_an_ordinary_instance(path: Path, memory: None) -> None:
    instance, arena = open_bound(path, 8, graphs=True)
    slots = range(20)
    fill(arena, instance.session, slots)
    instance.warm_up()
    session = Session(path, 1)
    names = [spec.name for spec in session.outputs]
    for n in range(1, 9):
        mixed = [(7 * i + n) % 20 for i in range(n)]
        for name in names:
            arena.outputs[name].array[:] = -1
        instance.run(mixed)
        found = {name: arena.outputs[name].array.copy() for name in names}
        Instance(session, arena, 8).run(mixed)
        for name in names:
            np.testing.assert_allclose(found[name], arena.outputs[name].array, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["echo", "two", "wide", "floats", "halves", "flags", "votes"])
def test_every_datatype_arrives(name: str, models: Path, memory: None) -> None:
    instance, arena = open_bound(models / name / "1" / MODEL_FILE, 4)
    fill(arena, instance.session, range(8))
    slots = [5, 0, 3]
    instance.run(slots)
    found = {name: region.array.copy() for name, region in arena.outputs.items()}
    Instance(Session(models / name / "1" / MODEL_FILE, 1), arena, 4).run(slots)
    for output, region in arena.outputs.items():
        np.testing.assert_array_equal(found[output][slots], region.array[slots])


def test_padding_writes_no_row_and_stays_the_buckets_own(models: Path) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 8)
    fill(arena, instance.session, range(16))
    instance.run(range(8))
    arena.outputs["same"].array[:] = 255
    instance.run([9, 10, 11, 12, 13])
    np.testing.assert_array_equal(arena.outputs["same"].array[9:14], arena.inputs["x"].array[9:14])
    assert (arena.outputs["same"].array[[*range(9), 14, 15]] == 255).all()


def test_a_batch_runs_as_its_plan_and_each_item_gets_its_own_answer(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 16)
    ran: list[int] = []
    original = bound.Bucket.run
    monkeypatch.setattr(
        bound.Bucket, "run", lambda bucket, slots: (ran.append(bucket._size), original(bucket, slots))[0]
    )
    fill(arena, instance.session, range(16))
    for seconds, expected in (
        (dict.fromkeys((1, 2, 4, 8, 16), 1.0), [16]),
        ({size: 0.01 + size for size in (1, 2, 4, 8, 16)}, [8, 4]),
    ):
        instance.learn(seconds)
        ran.clear()
        arena.outputs["same"].array[:] = 255
        slots = [15, *range(11)]
        instance.run(slots)
        assert ran == expected
        np.testing.assert_array_equal(arena.outputs["same"].array[slots], arena.inputs["x"].array[slots])


def test_small_batches_are_not_padded_to_a_large_one_that_alone_was_measured(models: Path) -> None:
    instance, _ = open_bound(models / "echo" / "1" / MODEL_FILE, 16)
    before = list(instance._plans)
    instance.learn({16: 1.0})
    assert instance._plans == before
    instance.learn({1: 5.0, 2: 1.0, 16: 1.0})
    assert instance._plans == [before[0], (2,), *before[2:]]


def test_a_row_that_made_a_run_fail_is_not_padding_of_the_next(models: Path, memory: None) -> None:
    instance, arena = open_bound(models / "picky" / "1" / MODEL_FILE, 4)
    rows = arena.inputs["x"].array
    rows[:8, 0] = [1, 2, 3, 99, 4, 5, 6, 7]
    with instance.session.quietly(), pytest.raises(RunFailed):
        instance.run([0, 1, 2, 3])
    instance.run([4, 5, 6])  # with one row of padding in the bucket that has just failed
    assert arena.outputs["y"].array[4:7, 0].tolist() == [44, 55, 66]


def test_a_device_whose_every_run_fails_ends_the_engine(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 4)
    fill(arena, instance.session, range(4))
    instance.run([0, 1, 2])

    def illegal_access(binding: object, options: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(instance._gpu.onnxruntime, "run_with_iobinding", illegal_access)
    with pytest.raises(DeviceLost, match="CUDA failure 700"):
        instance.run([0, 1, 2])


def test_a_capture_that_fails_leaves_a_model_without_graphs(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 4, graphs=True)
    fill(arena, instance.session, range(4))
    original = bound.Bucket._execute

    def fails(bucket: bound.Bucket) -> None:
        if bucket._options.get_run_config_entry("gpu_graph_id") != "-1":
            raise RunFailed("capture failed")
        original(bucket)

    monkeypatch.setattr(bound.Bucket, "_execute", fails)
    with caplog.at_level(logging.WARNING):
        instance.warm_up()
    assert [record.message for record in caplog.records if "without CUDA graphs: capture failed" in record.message]
    assert len(caplog.records) == 1
    instance.run([2, 1])
    np.testing.assert_array_equal(arena.outputs["same"].array[[2, 1]], arena.inputs["x"].array[[2, 1]])


def test_a_graph_that_answers_otherwise_is_not_used(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 4, graphs=True)
    fill(arena, instance.session, range(4))
    original = bound.Bucket._execute

    def stale(bucket: bound.Bucket) -> None:
        original(bucket)
        if bucket._options.get_run_config_entry("gpu_graph_id") == "2":
            for _, _, buffer, _ in bucket._outputs:
                buffer.array.fill(7)

    monkeypatch.setattr(bound.Bucket, "_execute", stale)
    instance.warm_up()
    assert not instance._gpu.graphs


def test_each_bucket_has_a_graph_number_of_its_own(models: Path) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 8, graphs=True)
    fill(arena, instance.session, range(8))
    instance.warm_up()
    numbers = {size: b._options.get_run_config_entry("gpu_graph_id") for size, b in instance._buckets.items()}
    assert numbers == {1: "1", 2: "2", 4: "4", 8: "8"}


def test_captures_happen_alone_and_runs_together(models: Path) -> None:
    instance, arena = open_bound(models / "echo" / "1" / MODEL_FILE, 2, graphs=True)
    fill(arena, instance.session, range(2))
    turns = instance._gpu.gpu.turns
    seen: list[tuple[bool, int]] = []
    for bucket in instance._buckets.values():
        upload = bucket._upload
        bucket._upload = lambda upload=upload: (seen.append((turns._alone, turns._together)), upload())[1]
    instance.warm_up()
    assert set(seen) == {(True, 0)}
    seen.clear()
    instance.run([0])
    assert set(seen) == {(False, 1)}


@pytest.mark.parametrize("name", ["echo", "scores"])
def test_a_version_loads_through_the_gpu_path(name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `load_version` does it, golden rows and measuring included."""
    monkeypatch.setattr(repository, "open_session", lambda model, settings, _: GpuSession(model, "cpu", settings.gpu))
    found = FoundVersion(name, "1", models / name / "1")
    loaded = load_version(found, replace(SETTINGS, instances=1, tune_budget_s=1.0))
    (instance,) = loaded.setup.instances
    assert isinstance(instance, BoundInstance)
    assert {1, 2, 4, 8} == loaded.setup.rates.keys() == instance._buckets.keys()
    assert instance._plans[8] == (8,) or sum(instance._plans[8]) >= 8


def test_a_tuned_version_runs_in_buckets_that_have_learnt(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "open_session", lambda model, settings, _: GpuSession(model, "cpu", settings.gpu))
    monkeypatch.setattr(repository, "_tuned", lambda *_: Knobs(2, 1, 4, 300))
    learnt: list[object] = []
    monkeypatch.setattr(BoundInstance, "learn", lambda _, seconds: learnt.append(seconds))
    loaded = load_version(FoundVersion("echo", "1", models / "echo" / "1"), replace(SETTINGS, tune_budget_s=5.0))
    os.close(loaded.arena_fd)
    setup = loaded.setup
    assert (len(setup.instances), setup.max_batch_size, loaded.max_queue_delay_us) == (2, 4, 300)
    assert all(isinstance(each, BoundInstance) and list(each._buckets) == [1, 2, 4] for each in setup.instances)
    assert learnt == [setup.seconds] * 2
    assert list(setup.seconds) == [1, 2, 4]


def test_a_model_left_to_the_cpu_is_refused_and_may_be_allowed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own answer about its nodes, with the CPU's provider standing in for the GPU's."""
    path = models / "echo" / "1" / MODEL_FILE
    monkeypatch.setattr(ort, "preload_dlls", lambda directory: None)
    monkeypatch.setattr("service.engine.gpu.providers", lambda *_: [("CPUExecutionProvider", {})])
    with pytest.raises(UnservableModel, match=r"CUDAExecutionProvider does not take all of the graph.*Mul"):
        GpuSession(path, "cuda", Gpu())
    allowed = GpuSession(path, "cuda", Gpu(allow_cpu_nodes=True))
    assert {node.operator for node in assigned_nodes(allowed.onnxruntime)} >= {"Mul"}
    assert all(
        isinstance(node, Node) and node.provider == "CPUExecutionProvider"
        for node in assigned_nodes(allowed.onnxruntime)
    )


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_provider_that_is_missing_is_named(device: str, models: Path) -> None:
    with pytest.raises(UnservableModel, match=r"the installed onnxruntime has .*; expected"):
        GpuSession(models / "echo" / "1" / MODEL_FILE, device, Gpu())


def test_what_cannot_be_bound_is_not(models: Path) -> None:
    echo = Session(models / "echo" / "1" / MODEL_FILE, 1)
    assert can_bind(echo.inputs, echo.outputs, True)
    (x,) = echo.inputs
    for changes in ({"shape": (-1, -1)}, {"datatype": "BYTES"}, {"datatype": "BF16"}):
        assert not can_bind((structs.replace(x, **changes),), echo.outputs, True)
    assert not can_bind((), echo.outputs, True)
