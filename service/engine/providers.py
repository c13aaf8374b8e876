"""How onnxruntime is asked for a GPU, and whether what it took is what was asked for.

onnxruntime falls back in silence: to the CPU when a library is missing, node by node where a provider has no kernel,
and in the middle of serving when a run fails. Nobody who asked for a GPU wants that unseen.
Checked by tests/unit/test_providers.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from service.engine.lane import Turns

Device = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[Device, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
Options = dict[str, str]

# onnxruntime puts a node that the CUDA provider could run on the CPU in one case: it computes a shape, a few integers
# that the host needs anyway. These operators have CUDA kernels, so in a graph that asks for a shape they are that case.
_SHAPE_MAKING = {"Shape", "Size", "Constant", "ConstantOfShape", "Range", "Reshape", "Squeeze", "Unsqueeze", "Identity"}
_SHAPE_CHOOSING = {"Gather", "Slice", "Concat", "Where", "Equal", "Less", "Greater", "Cast"}
_SHAPE_REDUCING = {"ReduceProd", "ReduceMax", "ReduceMin", "ReduceSum"}
_SHAPE_COUNTING = {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs"}
SHAPE_OPERATORS = frozenset(_SHAPE_MAKING | _SHAPE_CHOOSING | _SHAPE_COUNTING | _SHAPE_REDUCING)
_NAMED_NODES = 4


@dataclass(frozen=True)
class Gpu:
    """One device as its engine uses it.

    number     its index within CUDA_VISIBLE_DEVICES
    fp16       TensorRT may compute in half precision
    cache      folder for TensorRT's engines and timings; None: they are built at every start
    """

    number: int = 0
    cuda_graphs: bool = True
    tf32: bool = False
    fp16: bool = False
    mem_limit_bytes: int | None = None
    allow_cpu_nodes: bool = False
    cache: Path | None = None
    turns: Turns = field(default_factory=Turns)


class Node(NamedTuple):
    """A node and the provider it was assigned to."""

    provider: str
    operator: str
    name: str


def providers(device: Device, gpu: Gpu, graphs: bool) -> list[tuple[str, Options]]:
    """In onnxruntime's order of preference; the CPU is never among them, though onnxruntime always adds it."""
    if device == "cpu":
        return [(PROVIDERS["cpu"], {})]
    cuda = (PROVIDERS["cuda"], cuda_options(gpu, graphs))
    return [cuda] if device == "cuda" else [(PROVIDERS["tensorrt"], tensorrt_options(gpu)), cuda]


def cuda_options(gpu: Gpu, graphs: bool) -> Options:
    options = {
        "device_id": str(gpu.number),
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all algorithms again for each new shape
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and never gives back
        "do_copy_in_default_stream": "1",  # 0 races with the run
        "use_tf32": _flag(gpu.tf32),
        "enable_cuda_graph": _flag(graphs),
    }
    if gpu.mem_limit_bytes is not None:
        options["gpu_mem_limit"] = str(gpu.mem_limit_bytes)
    return options


def tensorrt_options(gpu: Gpu) -> Options:
    options = {"device_id": str(gpu.number), "trt_fp16_enable": _flag(gpu.fp16)}
    # Not trt_cuda_graph_enable: it keeps one graph, and there is one for each bucket.
    if gpu.cache is not None:
        folder = str(gpu.cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return options


def wants_graphs(device: Device, gpu: Gpu) -> bool:
    """CUDA's own provider alone: TensorRT keeps one graph for all sizes."""
    return device == "cuda" and gpu.cuda_graphs


def nodes_on_cpu(nodes: Iterable[Node]) -> list[Node]:
    """Those that the CPU computes although a GPU was asked for, without those that compute shapes."""
    nodes = list(nodes)
    on_cpu = [node for node in nodes if node.provider == PROVIDERS["cpu"]]
    if any(node.operator in ("Shape", "Size") for node in nodes):
        on_cpu = [node for node in on_cpu if node.operator not in SHAPE_OPERATORS]
    return on_cpu


def complaint(on_cpu: Sequence[Node], provider: str) -> str:
    """Why a model whose nodes are not all on the GPU is refused, and what to do."""
    named = ", ".join(f"{node.operator} {node.name!r}" for node in on_cpu[:_NAMED_NODES])
    more = f" and {len(on_cpu) - _NAMED_NODES} more" if len(on_cpu) > _NAMED_NODES else ""
    return (
        f"{provider} does not take all of the graph, the CPU would compute {named}{more}; --engine.device cpu "
        "serves it without the GPU, --engine.allow-cpu-nodes true with these nodes on the CPU"
    )


def _flag(value: bool) -> str:
    return "1" if value else "0"
