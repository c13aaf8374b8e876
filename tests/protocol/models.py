"""The models that the suite asks for: `python -m tests.protocol.models DIR` writes them, with `onnx` and numpy alone.

identity_<datatype>   x0 … x5, items of 0 to 5 axes         y0 … y5 the same
simple                INPUT0, INPUT1 INT32 [n, 16]          OUTPUT0 their sum, OUTPUT1 their difference
floats                x FP32 [n, 4]                         y the same
variable              x FP32 [n, length]                    y the same
picture               x UINT8 [n, height, width]            y the same
text                  x BYTES [n, 1]                        y the same
texts                 x BYTES [n, length]                   y the same
unbatched             x FP32 [2, 3]                         y the same
versioned             x INT64 [n]                           y = x + 10 in version 1, x + 20 in version 2
odd name+%41é         x INT64 [n]                           y the same; its name must be percent-encoded, once

Each is `<name>/<version>/model.onnx`, with a `config.pbtxt` beside the versions for Triton. ONNX opset 16, which is the
first with Identity of all of these types.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ODD_NAME = "odd name+%41é"

ITEM_SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (2, 1, 3), (1, 2, 3, 2), (2, 1, 2, 1, 3))

ONNX_OF = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}

_OPSET, _IR_VERSION = 16, 8
_MAX_BATCH_SIZE = 64  # of config.pbtxt


class Tensor(NamedTuple):
    """`dims` without the batch; a name is an axis of any length."""

    name: str
    datatype: str
    dims: Sequence[int | str]


class Network(NamedTuple):
    """`batched`: every tensor has a first axis that counts items, beside its `dims`."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    nodes: list[onnx.NodeProto]
    batched: bool = True
    constants: Sequence[onnx.TensorProto] = ()


def write_models(root: Path) -> Path:
    for datatype in ONNX_OF:
        _write(root, identity_name(datatype), "1", _identities(datatype))
    _write(root, "simple", "1", _simple())
    for name, (datatype, dims) in {
        "floats": ("FP32", (4,)),
        "variable": ("FP32", ("length",)),
        "picture": ("UINT8", ("height", "width")),
        "text": ("BYTES", (1,)),
        "texts": ("BYTES", ("length",)),
        ODD_NAME: ("INT64", ()),
    }.items():
        _write(root, name, "1", _identity(datatype, dims))
    _write(root, "unbatched", "1", _identity("FP32", (2, 3))._replace(batched=False))
    for version in (1, 2):
        _write(root, "versioned", f"{version}", _plus(10 * version))
    return root


def identity_name(datatype: str) -> str:
    return f"identity_{datatype.lower()}"


def _identities(datatype: str) -> Network:
    numbers = range(len(ITEM_SHAPES))
    return Network(
        [Tensor(f"x{i}", datatype, ITEM_SHAPES[i]) for i in numbers],
        [Tensor(f"y{i}", datatype, ITEM_SHAPES[i]) for i in numbers],
        [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in numbers],
    )


def _identity(datatype: str, dims: Sequence[int | str]) -> Network:
    node = helper.make_node("Identity", ["x"], ["y"])
    return Network([Tensor("x", datatype, dims)], [Tensor("y", datatype, dims)], [node])


def _simple() -> Network:
    names = ["INPUT0", "INPUT1"]
    return Network(
        [Tensor(name, "INT32", (16,)) for name in names],
        [Tensor(name, "INT32", (16,)) for name in ("OUTPUT0", "OUTPUT1")],
        [helper.make_node("Add", names, ["OUTPUT0"]), helper.make_node("Sub", names, ["OUTPUT1"])],
    )


def _plus(number: int) -> Network:
    constant = numpy_helper.from_array(np.array(number, np.int64), "number")
    node = helper.make_node("Add", ["x", "number"], ["y"])
    return Network([Tensor("x", "INT64", ())], [Tensor("y", "INT64", ())], [node], True, [constant])


def _write(root: Path, name: str, version: str, network: Network) -> None:
    folder = root / name / version
    folder.mkdir(parents=True)
    first = ["n"] if network.batched else []
    sides = [
        [helper.make_tensor_value_info(x.name, ONNX_OF[x.datatype], [*first, *x.dims]) for x in side]
        for side in (network.inputs, network.outputs)
    ]
    graph = helper.make_graph(network.nodes, "network", *sides, network.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), folder / "model.onnx")
    (folder.parent / "config.pbtxt").write_text(_config(name, network))


def _config(name: str, network: Network) -> str:
    """Triton's; a tensor without dims but the batch is `[1]` reshaped to none."""
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {_MAX_BATCH_SIZE * network.batched}"]
    for field, side in (("input", network.inputs), ("output", network.outputs)):
        for tensor in side:
            datatype = {"BYTES": "STRING"}.get(tensor.datatype, tensor.datatype)
            dims = ", ".join("-1" if isinstance(size, str) else f"{size}" for size in tensor.dims)
            shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"
            lines.append(f'{field} {{ name: "{tensor.name}" data_type: TYPE_{datatype} {shape} }}')
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.protocol.models DIR")
    write_models(Path(sys.argv[1]))
