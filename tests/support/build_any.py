"""Models of every datatype, of shapes that vary, and without a batch axis. `build_any_repository` writes them all.

all-<datatype>  x0 … x5, items of 0 to 5 axes      y0 … y5 the same; FP16, FP32, FP64, INT32, INT64 doubled
upper       x BF16 [n, 3]                          y FP32 = 2 x
ragged      x FP32 [n, length]                     double FP32 [n, length] = 2 x · total FP32 [n] = sum
pictures    x UINT8 [n, height, width, 3]          turned UINT8 [n, width, height, 3] · mean FP32 [n, 3]
pair        a INT64 [n, length], b INT64 [n, 2]    joined INT64 [n, length + 2]
outer       x FP32 [n, length]                     y FP32 [n, length, length] = x of each pair
fixed       x FP32 [3, 2]                          y = 2 x
matrix      x FP32 [rows, columns], bias FP32 []   turned FP32 [columns, rows] = x + bias · where INT64 [2, k] of x ≠ 0
mixed       x FP32 [n, 4], scale FP32 [4]          y FP32 [n, 4] = x scale
constant    no input                               y INT64 [2] = 7, 8
either      condition BOOL []                      y FP32: 1, or [1, 2]
words       a, b BYTES [n, length]                 y BYTES = a b
labels      x BYTES [n]                            y INT64: cat 1, dog 2, else -1
repeated    x BYTES [n]                            y BYTES = x five times
centred     x FP32 [n, 3]                          y = x - mean over the batch: no batch
running     x FP32 [time, 2]                       y = sum up to that time: no batch
split       x BYTES [n]                            words BYTES [n, most], filled up with "" · counts INT64 [n]: no batch
reversed    x FP32 [n, length]                     y = x from its end, along the batch: no batch
narrow      x INT64 [n]                            y = x - 50; fails but for 40 to 59, so that no invented item runs
late        x INT64 [n, length]                    y = x; fails where length < 60
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import MODEL_FILE, Datatype

ONNX_OF = {
    "BOOL": TensorProto.BOOL,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
} | {name: getattr(TensorProto, name) for name in get_args(Datatype) if "INT" in name}

ITEM_SHAPES = ((), (3,), (2, 3), (2, 1, 3), (1, 2, 3, 2), (2, 1, 2, 1, 3))
DOUBLED = ("FP16", "FP32", "FP64", "INT32", "INT64")  # onnxruntime's CPU provider adds no other

Axes = Sequence[int | str | None] | None
Tensors = dict[str, tuple[str, Axes]]


def build_any_repository(root: Path) -> Path:
    for datatype in get_args(Datatype):
        shapes = {f"{i}": ["n", *shape] for i, shape in enumerate(ITEM_SHAPES)}
        nodes = [
            _node("Add", f"x{i} x{i}", f"y{i}") if datatype in DOUBLED else _node("Identity", f"x{i}", f"y{i}")
            for i in shapes
        ]
        tensors = [{f"{side}{i}": (datatype, shape) for i, shape in shapes.items()} for side in "xy"]
        write(root, f"all-{datatype}", *tensors, nodes)
    _write_numbers(root)
    _write_without_batch(root)
    _write_strings(root)
    _write_dependent(root)
    return root


def _write_numbers(root: Path) -> None:
    cast = [_node("Cast", "x", "f", to=TensorProto.FLOAT), _node("Add", "f f", "y")]
    write(root, "upper", {"x": ("BF16", ["n", 3])}, {"y": ("FP32", ["n", 3])}, cast)
    write(
        root,
        "ragged",
        {"x": ("FP32", ["n", "length"])},
        {"double": ("FP32", ["n", "length"]), "total": ("FP32", ["n"])},
        [_node("Add", "x x", "double"), _node("ReduceSum", "x axis", "total", keepdims=0)],
        {"axis": np.array([1])},
    )
    write(
        root,
        "pictures",
        {"x": ("UINT8", ["n", "height", "width", 3])},
        {"turned": ("UINT8", ["n", "width", "height", 3]), "mean": ("FP32", ["n", 3])},
        [
            _node("Transpose", "x", "turned", perm=[0, 2, 1, 3]),
            _node("Cast", "x", "f", to=TensorProto.FLOAT),
            _node("ReduceMean", "f axes", "mean", keepdims=0),
        ],
        {"axes": np.array([1, 2])},
    )
    write(
        root,
        "pair",
        {"a": ("INT64", ["n", "length"]), "b": ("INT64", ["n", 2])},
        {"joined": ("INT64", ["n", None])},
        [_node("Concat", "a b", "joined", axis=1)],
    )
    write(
        root,
        "outer",
        {"x": ("FP32", ["n", "length"])},
        {"y": ("FP32", ["n", "length", "length"])},
        [_node("Unsqueeze", "x one", "a"), _node("Unsqueeze", "x two", "b"), _node("Mul", "a b", "y")],
        {"one": np.array([1]), "two": np.array([2])},
    )
    gather = [_node("Sub", "x fifty", "index"), _node("Gather", "table index", "y")]
    tables = {"fifty": np.array(50), "table": np.array([*range(10), *range(-10, 0)])}  # a negative index: from the end
    write(root, "narrow", {"x": ("INT64", ["n"])}, {"y": ("INT64", ["n"])}, gather, tables)
    late = [
        _node("Gather", "x last", "picked", axis=1),
        _node("Mul", "picked zero", "none"),
        _node("Add", "x none", "y"),
    ]
    constants = {"last": np.array([59]), "zero": np.array(0)}
    write(root, "late", {"x": ("INT64", ["n", "length"])}, {"y": ("INT64", ["n", "length"])}, late, constants)


def _write_without_batch(root: Path) -> None:
    write(root, "fixed", {"x": ("FP32", [3, 2])}, {"y": ("FP32", [3, 2])}, [_node("Add", "x x", "y")])
    write(
        root,
        "matrix",
        {"x": ("FP32", ["rows", "columns"]), "bias": ("FP32", [])},
        {"turned": ("FP32", ["columns", "rows"]), "where": ("INT64", [2, None])},
        [_node("Transpose", "x", "t"), _node("Add", "t bias", "turned"), _node("NonZero", "x", "where")],
    )
    write(
        root,
        "mixed",
        {"x": ("FP32", ["n", 4]), "scale": ("FP32", [4])},
        {"y": ("FP32", ["n", 4])},
        [_node("Mul", "x scale", "y")],
    )
    write(root, "constant", {}, {"y": ("INT64", [2])}, [helper.make_node("Constant", [], ["y"], value_ints=[7, 8])])
    branches = []
    for name, values in (("then", {"value_float": 1.0}), ("else", {"value_floats": [1.0, 2.0]})):
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [] if name == "then" else [2])
        branches.append(helper.make_graph([helper.make_node("Constant", [], [name], **values)], name, [], [output]))
    either = helper.make_node("If", ["condition"], ["y"], then_branch=branches[0], else_branch=branches[1])
    write(root, "either", {"condition": ("BOOL", [])}, {"y": ("FP32", None)}, [either])


def _write_strings(root: Path) -> None:
    both: Tensors = {"a": ("BYTES", ["n", "length"]), "b": ("BYTES", ["n", "length"])}
    write(root, "words", both, {"y": ("BYTES", ["n", "length"])}, [_node("StringConcat", "a b", "y")])
    encode = helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["cat", "dog"], values_int64s=[1, 2]
    )
    write(root, "labels", {"x": ("BYTES", ["n"])}, {"y": ("INT64", ["n"])}, [encode])
    repeat = [_node("StringConcat", "x x", "two"), _node("StringConcat", "two two", "four")]
    repeat.append(_node("StringConcat", "four x", "y"))
    write(root, "repeated", {"x": ("BYTES", ["n"])}, {"y": ("BYTES", ["n"])}, repeat)
    split = helper.make_node("StringSplit", ["x"], ["words", "counts"])
    outputs: Tensors = {"words": ("BYTES", ["n", "most"]), "counts": ("INT64", ["n"])}
    write(root, "split", {"x": ("BYTES", ["n"])}, outputs, [split])


def _write_dependent(root: Path) -> None:
    """By name they have a batch axis."""
    mean = [_node("ReduceMean", "x first", "mean"), _node("Sub", "x mean", "y")]
    write(root, "centred", {"x": ("FP32", ["n", 3])}, {"y": ("FP32", ["n", 3])}, mean, {"first": np.array([0])})
    total = [_node("CumSum", "x first", "y")]
    write(root, "running", {"x": ("FP32", ["time", 2])}, {"y": ("FP32", ["time", 2])}, total, {"first": np.array(0)})
    turn = [_node("Slice", "x start end axis step", "y")]
    slices = {"start": np.array([-1]), "end": np.array([-(2**62)]), "axis": np.array([0]), "step": np.array([-1])}
    axes = ["n", "length"]
    write(root, "reversed", {"x": ("FP32", axes)}, {"y": ("FP32", axes)}, turn, slices)


def write(
    root: Path,
    name: str,
    inputs: Tensors,
    outputs: Tensors,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
) -> Path:
    """The version's folder."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    sides = [
        [helper.make_tensor_value_info(tensor, ONNX_OF[datatype], axes) for tensor, (datatype, axes) in side.items()]
        for side in (inputs, outputs)
    ]
    arrays = [numpy_helper.from_array(array, constant) for constant, array in (constants or {}).items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph(nodes, name, *sides, arrays), opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / MODEL_FILE)
    return folder


def _node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)
