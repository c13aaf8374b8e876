"""What onnxruntime is asked for, and what is made of its answer."""

from pathlib import Path

import pytest

from service.engine.providers import Gpu, Node, complaint, nodes_on_cpu, providers, wants_graphs
from service.engine.serve import model_settings
from service.listening import StartError, require_device
from service.settings import Engine, Settings, SettingsError, read_settings

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_cuda_is_asked_for_with_these_options() -> None:
    assert providers("cuda", Gpu(number=1), graphs=True) == [
        (
            CUDA,
            {
                "device_id": "1",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
                "do_copy_in_default_stream": "1",
                "use_tf32": "0",
                "enable_cuda_graph": "1",
            },
        )
    ]


def test_a_memory_limit_is_passed_on() -> None:
    ((_, options),) = providers("cuda", Gpu(mem_limit_bytes=1 << 30), graphs=False)
    assert options["gpu_mem_limit"] == str(1 << 30)
    assert options["enable_cuda_graph"] == "0"


def test_tensorrt_leaves_to_cuda_and_not_to_the_cpu() -> None:
    (first, options), (second, _) = providers("tensorrt", Gpu(number=2, fp16=True, cache=Path("/c")), graphs=False)
    assert (first, second) == (TENSORRT, CUDA)
    assert options == {
        "device_id": "2",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/c",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/c",
    }


def test_graphs_are_for_cuda_alone() -> None:
    assert wants_graphs("cuda", Gpu())
    assert not wants_graphs("cuda", Gpu(cuda_graphs=False))
    assert not wants_graphs("tensorrt", Gpu())


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([Node(CUDA, "Conv", "a")], []),
        ([Node(CUDA, "Conv", "a"), Node(CPU, "Conv", "b")], ["b"]),
        ([Node(CUDA, "Conv", "a"), Node(CPU, "Shape", "b"), Node(CPU, "Gather", "c")], []),
        ([Node(CPU, "Shape", "b"), Node(CPU, "NonMaxSuppression", "c")], ["c"]),
        ([Node(CUDA, "Conv", "a"), Node(CPU, "Gather", "c")], ["c"]),  # no shape is asked for: it is the data's
        ([Node(TENSORRT, "TRTKernel", "a"), Node(CUDA, "Conv", "b")], []),
    ],
)
def test_nodes_that_only_compute_shapes_may_stay_on_the_cpu(nodes: list[Node], expected: list[str]) -> None:
    assert [node.name for node in nodes_on_cpu(nodes)] == expected


def test_the_complaint_names_the_first_nodes_and_what_to_do() -> None:
    text = complaint([Node(CPU, "TopK", f"n{i}") for i in range(6)], CUDA)
    assert "TopK 'n0', TopK 'n1', TopK 'n2', TopK 'n3' and 2 more;" in text
    assert "--engine.device cpu" in text
    assert "--engine.allow-cpu-nodes true" in text


def test_half_precision_without_tensorrt_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"engine\.fp16 needs engine\.device tensorrt, not cuda"):
        read_settings(["--engine.device", "cuda", "--engine.fp16", "true"], "serve")
    settings = read_settings(["--engine.device", "tensorrt", "--engine.fp16", "true"], "serve")
    assert model_settings(settings).gpu.fp16


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_asked_for_by_name_must_be_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(engine=Engine(device=device))
    monkeypatch.setattr("service.listening.cuda_devices", list)
    with pytest.raises(StartError, match=f"--engine.device {device}: no CUDA device"):
        require_device(settings)
    monkeypatch.setattr("service.listening.cuda_devices", lambda: ["0"])
    require_device(settings)


def test_engines_take_the_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.serve.cuda_devices", lambda: ["4", "7"])
    assert [model_settings(Settings(), number).gpu.number for number in range(4)] == [0, 1, 0, 1]
