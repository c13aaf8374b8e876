"""On a real GPU: the bundled models and small ones, loaded as the service loads them, against the CPU's answers."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.manifest import MODEL_FILE, NUMPY_OF
from service.batching.arena import Arena, create_arena
from service.engine.bound import BoundInstance
from service.engine.gpu import GpuSession, assigned_nodes
from service.engine.instance import Instance
from service.engine.pinned import memory_for
from service.engine.providers import PROVIDERS, Gpu
from service.engine.repository import FoundVersion, ModelSettings, load_version
from service.engine.session import RunFailed, Session, UnservableModel, default_device
from tests.support.build_models import build_repository

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(default_device() != "cuda", reason="needs a CUDA device and onnxruntime-gpu"),
]

BUNDLED = sorted((Path(__file__).parents[2] / "models").glob("*/*/model.onnx"))
FLOAT = [path for path in BUNDLED if b"QuantizeLinear" not in path.read_bytes()]
IDS = [f"{path.parents[1].name}-{path.parent.name}" for path in FLOAT]
MNIST = next(path for path in FLOAT if path.parents[1].name == "mnist")
SETTINGS = ModelSettings(
    device="cuda",
    cores=2,
    max_batch_size=64,
    max_queue_items=256,
    max_row_bytes=1 << 16,
    instances=None,
    threads=None,
    tune_budget_s=2.0,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_repository(tmp_path_factory.mktemp("models"))


def open_bound(path: Path, largest: int, gpu: Gpu | None = None) -> tuple[BoundInstance, Arena]:
    """With random items in slots 0 to 2 * largest - 1, warmed up."""
    session = GpuSession(path, "cuda", gpu or Gpu())
    _, arena = create_arena(session.inputs, session.outputs, 2 * largest)
    generator = np.random.default_rng(0)
    for spec in session.inputs:
        rows = arena.inputs[spec.name].array
        rows[:] = generator.integers(0, 100, rows.shape).astype(NUMPY_OF[spec.datatype])
    instance = BoundInstance(session, arena, largest)
    instance.warm_up()
    return instance, arena


def answers(arena: Arena, slots: list[int]) -> dict[str, np.ndarray]:
    return {name: region.array[slots].copy() for name, region in arena.outputs.items()}


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("path", FLOAT, ids=IDS)
def test_every_bucket_answers_as_the_cpu_does(path: Path, graphs: bool) -> None:
    instance, arena = open_bound(path, 64, Gpu(cuda_graphs=graphs))
    assert instance._gpu.graphs is graphs
    on_cpu = Instance(Session(path, 1), arena, 64)
    for n in (1, 2, 3, 4, 8, 12, 16, 31, 32, 33, 64):
        slots = [(7 * i + n) % 128 for i in range(n)]
        instance.run(slots)
        found = answers(arena, slots)
        on_cpu.run(slots)
        for name, expected in answers(arena, slots).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", FLOAT, ids=IDS)
def test_a_replay_answers_as_a_run_without_graph(path: Path) -> None:
    with_graphs, arena = open_bound(path, 16)
    slots = [30, 3, 17, 5, 9]
    with_graphs.run(slots)
    found = answers(arena, slots)
    session = GpuSession(path, "cuda", Gpu(cuda_graphs=False))
    BoundInstance(session, arena, 16).run(slots)
    for name, expected in answers(arena, slots).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_no_answer() -> None:
    instance, arena = open_bound(MNIST, 8)
    instance.run([0, 1, 2, 3, 4])
    first = answers(arena, [0, 1, 2, 3, 4])
    instance.run([8, 9, 10, 11, 12, 13, 14, 15])
    instance.run([0, 1, 2, 3, 4])  # other rows of padding
    for name, again in answers(arena, [0, 1, 2, 3, 4]).items():
        np.testing.assert_array_equal(again, first[name])


@pytest.mark.parametrize("name", ["echo", "two", "wide", "floats", "halves", "flags", "votes"])
def test_every_datatype_arrives(name: str, models: Path) -> None:
    path = models / name / "1" / MODEL_FILE
    try:
        instance, arena = open_bound(path, 4)
    except UnservableModel as error:
        pytest.skip(str(error))
    slots = [5, 0, 3]
    instance.run(slots)
    found = answers(arena, slots)
    Instance(Session(path, 1), arena, 4).run(slots)
    for output, expected in answers(arena, slots).items():
        np.testing.assert_allclose(found[output], expected)


def test_host_memory_is_pinned() -> None:
    assert memory_for("cuda", 0).kind == "pinned"


def test_versions_load_with_their_golden_rows() -> None:
    for path in FLOAT:
        found = FoundVersion(path.parents[1].name, path.parent.name, path.parent)
        loaded = load_version(found, SETTINGS)
        os.close(loaded.arena_fd)
        assert len(loaded.setup.instances) == 1
        assert isinstance(loaded.setup.instances[0], BoundInstance)
        assert loaded.golden_rows


def test_no_node_of_the_float_models_is_left_to_the_cpu() -> None:
    for path in FLOAT:
        nodes = assigned_nodes(GpuSession(path, "cuda", Gpu()).onnxruntime)
        assert {node.provider for node in nodes} == {PROVIDERS["cuda"]}, path


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnservableModel):
        GpuSession(MNIST, "cuda", Gpu(number=63))


@pytest.mark.skipif("TensorrtExecutionProvider" in ort.get_available_providers(), reason="TensorRT is here")
def test_tensorrt_that_is_missing_is_refused() -> None:
    with pytest.raises(UnservableModel, match="TensorrtExecutionProvider"):
        GpuSession(MNIST, "tensorrt", Gpu())


def test_models_load_and_capture_while_another_serves() -> None:
    gpu = Gpu()
    serving, arena = open_bound(MNIST, 8, gpu)
    slots = [3, 1, 4, 12, 5]
    serving.run(slots)
    expected = answers(arena, slots)
    stop = threading.Event()
    failures: list[str] = []
    runs = [0]

    def serve() -> None:
        while not stop.is_set():
            try:
                serving.run(slots)
            except RunFailed as error:
                failures.append(str(error))
                continue
            runs[0] += 1
            if not all(np.array_equal(found, expected[name]) for name, found in answers(arena, slots).items()):
                failures.append("another answer")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        settings = replace(SETTINGS, gpu=gpu)
        for path in FLOAT[:2]:
            found = FoundVersion(path.parents[1].name, path.parent.name, path.parent)
            loaded = load_version(found, settings)
            os.close(loaded.arena_fd)
            (instance,) = loaded.setup.instances
            assert isinstance(instance, BoundInstance)
            assert instance._gpu.graphs
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert runs[0]


def test_memory_does_not_grow_over_a_thousand_runs() -> None:
    pytest.importorskip("torch")
    import torch

    instance, _ = open_bound(MNIST, 64)
    sizes = (1, 5, 12, 64)
    for i in range(100):
        instance.run(range(sizes[i % 4]))
    free, _ = torch.cuda.mem_get_info(0)
    for i in range(1000):
        instance.run(range(sizes[i % 4]))
    assert free - torch.cuda.mem_get_info(0)[0] < 8 << 20
