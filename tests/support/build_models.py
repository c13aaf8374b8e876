"""Tiny ONNX models whose answers tell which input they belong to. `build_repository` writes them all.

echo      x UINT8 [n, 4]          same = x · half FP32 = x / 2
two       a FP32 [n, 3], b INT32 [n, 2]   total FP32 [n] = sum of both · negated INT32 = -b
wide      x UINT64 [n, 2]         y = x
floats    x FP32 [n, 2]           y = x
halves    x FP16 [n, 3]           y = 2 x
flags     x BOOL [n, 3]           y = not x
scores    image UINT8 [n, 28, 28, 1], fit crop      scores FP32 [n, 4] = sum of the pixels in each quarter
padded    image UINT8 [n, 8, 8, 3], fit pad         sums FP32 [n, 3] = sum of each colour
stretched as padded, fit stretch
votes     x UINT8 [n, 3]          votes = x, labelled
picky     x INT64 [n]             y = 11 x; the run fails where x > 9
slow      x INT64 [n]             y = x, after about 100 ms whatever the batch
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    NUMPY_OF,
    Classification,
    Golden,
    ImageInput,
    Manifest,
    TensorInput,
    TensorSpec,
    Tolerance,
    digest_file,
    read_manifest,
    write_golden,
    write_manifest,
)

QUARTERS = ("top left", "top right", "bottom left", "bottom right")
COLOURS = ("red", "green", "blue")
PARTIES = ("left", "middle", "right")

_OPSET, _IR_VERSION = 20, 10


@dataclass(frozen=True)
class Graph:
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    nodes: Sequence[onnx.NodeProto]
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def build_repository(root: Path) -> Path:
    for name, graph in plain_graphs().items():
        write_model(root, name, graph)
    publish_scores(root)
    for name, fit in (("padded", "pad"), ("stretched", "stretch")):
        write_model(root, name, colour_sums())
        publish(root / name / "1", colour_sums(), ImageInput(8, 8, 3, fit), Classification("sums", COLOURS))
    votes = Graph([_spec("x", "UINT8", 3)], [_spec("votes", "UINT8", 3)], [_node("Identity", "x", "votes")])
    write_model(root, "votes", votes)
    publish(root / "votes" / "1", votes, TensorInput(), Classification("votes", PARTIES))
    return root


def plain_graphs() -> dict[str, Graph]:
    echo = Graph(
        [_spec("x", "UINT8", 4)],
        [_spec("same", "UINT8", 4), _spec("half", "FP32", 4)],
        [
            _node("Identity", "x", "same"),
            _node("Cast", "x", "float", to=TensorProto.FLOAT),
            _node("Mul", "float 0.5", "half"),
        ],
        {"0.5": np.array(0.5, np.float32)},
    )
    two = Graph(
        [_spec("a", "FP32", 3), _spec("b", "INT32", 2)],
        [_spec("total", "FP32"), _spec("negated", "INT32", 2)],
        [
            _node("Cast", "b", "b_float", to=TensorProto.FLOAT),
            _node("Concat", "a b_float", "all", axis=1),
            _node("ReduceSum", "all axis_1", "total", keepdims=0),
            _node("Neg", "b", "negated"),
        ],
        {"axis_1": np.array([1])},
    )
    return {
        "echo": echo,
        "two": two,
        "wide": _one_node("UINT64", (2,), _node("Identity", "x", "y")),
        "floats": _one_node("FP32", (2,), _node("Identity", "x", "y")),
        "halves": _one_node("FP16", (3,), _node("Add", "x x", "y")),
        "flags": _one_node("BOOL", (3,), _node("Not", "x", "y")),
        "picky": _one_node("INT64", (), _node("Gather", "table x", "y"), {"table": 11 * np.arange(10)}),
        "slow": slow_graph(),
    }


def slow_graph(side: int = 1100, products: int = 3) -> Graph:
    """A product of large matrices that depends on x only by x * 0, so that nothing can be computed at load."""
    powers = ["ones", *(f"power_{i}" for i in range(products))]
    return Graph(
        [_spec("x", "INT64")],
        [_spec("y", "INT64")],
        [
            _node("ReduceMax", "x", "largest", keepdims=0),
            _node("Cast", "largest", "as_float", to=TensorProto.FLOAT),
            _node("Mul", "as_float zero", "nothing"),
            _node("Expand", "nothing size", "zeros"),
            _node("Add", "zeros one", "ones"),
            *(_node("MatMul", f"{powers[i]} ones", powers[i + 1]) for i in range(products)),
            _node("ReduceMin", powers[-1], "least", keepdims=0),
            _node("Mul", "least zero", "still_nothing"),
            _node("Cast", "still_nothing", "offset", to=TensorProto.INT64),
            _node("Add", "x offset", "y"),
        ],
        {
            "zero": np.array(0, np.float32),
            "one": np.array(1, np.float32),
            "size": np.array([side, side]),
        },
    )


def quarter_sums() -> Graph:
    """scores[i] = sum of the pixels in quarter i, exact in FP32."""
    weights = np.zeros((28, 28, 4), np.float32)
    for i, (top, left) in enumerate([(0, 0), (0, 14), (14, 0), (14, 14)]):
        weights[top : top + 14, left : left + 14, i] = 1
    return Graph(
        [_spec("image", "UINT8", 28, 28, 1)],
        [_spec("scores", "FP32", 4)],
        [
            _node("Cast", "image", "float", to=TensorProto.FLOAT),
            _node("Flatten", "float", "flat", axis=1),
            _node("MatMul", "flat weights", "scores"),
        ],
        {"weights": weights.reshape(784, 4)},
    )


def quarters_of(images: np.ndarray) -> np.ndarray:
    """What `scores` answers for uint8 [n, 28, 28, 1]: FP32 [n, 4]."""
    return images.reshape(-1, 2, 14, 2, 14).sum(axis=(2, 4)).reshape(-1, 4).astype(np.float32)


def colour_sums() -> Graph:
    return Graph(
        [_spec("image", "UINT8", 8, 8, 3)],
        [_spec("sums", "FP32", 3)],
        [
            _node("Cast", "image", "float", to=TensorProto.FLOAT),
            _node("ReduceSum", "float rows_and_columns", "sums", keepdims=0),
        ],
        {"rows_and_columns": np.array([1, 2])},
    )


def publish_scores(root: Path, name: str = "scores", version: int = 1) -> Path:
    """With labels, golden rows and digests, as training publishes."""
    folder = write_model(root, name, quarter_sums(), version)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    write_golden(folder, Golden({"image": images}, {"scores": quarters_of(images)}))
    publish(folder, quarter_sums(), ImageInput(28, 28, 1), Classification("scores", QUARTERS))
    return folder


def publish(
    folder: Path, graph: Graph, kind: ImageInput | TensorInput, classification: Classification | None = None
) -> None:
    """Write the manifest of what lies in `folder`."""
    manifest = Manifest(
        name=folder.parent.name,
        version=int(folder.name),
        description=f"{folder.parent.name}, for the tests",
        created_at="2026-01-01T00:00:00Z",
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        input=kind,
        classification=classification,
        metrics={},
        tolerance=Tolerance(),
        files={name: digest_file(folder / name) for name in (MODEL_FILE, GOLDEN_FILE) if (folder / name).exists()},
    )
    write_manifest(folder, manifest)


def change_manifest(folder: Path, **changes: object) -> None:
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), **changes))


def write_model(root: Path, name: str, graph: Graph, version: int = 1) -> Path:
    """The version's folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    model = helper.make_graph(
        list(graph.nodes),
        name,
        [_value_info(spec) for spec in graph.inputs],
        [_value_info(spec) for spec in graph.outputs],
        [numpy_helper.from_array(array, constant) for constant, array in graph.constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    onnx.save(helper.make_model(model, opset_imports=opsets, ir_version=_IR_VERSION), folder / MODEL_FILE)
    return folder


def _one_node(
    datatype: str, shape: tuple[int, ...], node: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None
) -> Graph:
    return Graph([_spec("x", datatype, *shape)], [_spec("y", datatype, *shape)], [node], constants or {})


def _spec(name: str, datatype: str, *item_shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, (-1, *item_shape))


def _node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(NUMPY_OF[spec.datatype].newbyteorder("="))
    return helper.make_tensor_value_info(spec.name, element, ["n", *spec.shape[1:]])
