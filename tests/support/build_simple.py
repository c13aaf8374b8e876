"""The models that the official clients' examples ask for, and one for each thing a client can do beside them.

simple            INPUT0, INPUT1 INT32 [n, 16]     OUTPUT0 = INPUT0 + INPUT1 · OUTPUT1 = INPUT0 - INPUT1
simple_string     the same as BYTES: whole numbers written in decimal
simple_identity   INPUT0 BYTES [n, length]         OUTPUT0 = INPUT0
simple_fp32       INPUT0 FP32 [n, 4]               OUTPUT0 = INPUT0
simple_fp16       INPUT0 FP16 [n, 4]               OUTPUT0 = 2 INPUT0
simple_bf16       INPUT0 BF16 [n, 4]               OUTPUT0 = INPUT0
simple_labels     INPUT0 FP32 [n, 3], a manifest   OUTPUT0 = INPUT0, labelled `LABELS`
`SPELT`           as simple; its name has to be percent-encoded in a path; version 3, beside an older one
"""

from pathlib import Path

import onnx
from onnx import helper

from models.manifest import Classification, TensorInput, TensorSpec
from tests.support.build_any import ONNX_OF, Tensors, write
from tests.support.build_models import Graph, publish

LABELS = ("cat", "dog", "fish")
SPELT = "simple é+50% #1?"

_PAIR = ("INPUT0", "INPUT1")
_NUMBERS = ["n", 16]


def build_simple_repository(root: Path) -> Path:
    sum_and_difference = [_node("Add", "INPUT0 INPUT1", "OUTPUT0"), _node("Sub", "INPUT0 INPUT1", "OUTPUT1")]
    _write_pair(root, "simple", "INT32", sum_and_difference)
    _write_pair(root, SPELT, "INT32", sum_and_difference)
    (root / SPELT / "1").rename(root / SPELT / "3")
    _write_pair(root, SPELT, "INT32", sum_and_difference)
    _write_strings(root)
    same = [_node("Identity", "INPUT0", "OUTPUT0")]
    _write_one(root, "simple_identity", "BYTES", ["n", "length"], same)
    _write_one(root, "simple_fp32", "FP32", ["n", 4], same)
    _write_one(root, "simple_fp16", "FP16", ["n", 4], [_node("Add", "INPUT0 INPUT0", "OUTPUT0")])
    _write_one(root, "simple_bf16", "BF16", ["n", 4], same)
    folder = _write_one(root, "simple_labels", "FP32", ["n", 3], same)
    specs = [TensorSpec(name, "FP32", (-1, 3)) for name in ("INPUT0", "OUTPUT0")]
    publish(folder, Graph(specs[:1], specs[1:], same), TensorInput(), Classification("OUTPUT0", LABELS))
    return root


def _write_strings(root: Path) -> None:
    integer, text = ONNX_OF["INT32"], ONNX_OF["BYTES"]
    nodes = [
        _node("Cast", "INPUT0", "first", to=integer),
        _node("Cast", "INPUT1", "second", to=integer),
        _node("Add", "first second", "sum"),
        _node("Sub", "first second", "difference"),
        _node("Cast", "sum", "OUTPUT0", to=text),
        _node("Cast", "difference", "OUTPUT1", to=text),
    ]
    _write_pair(root, "simple_string", "BYTES", nodes)


def _write_pair(root: Path, name: str, datatype: str, nodes: list[onnx.NodeProto]) -> None:
    inputs: Tensors = dict.fromkeys(_PAIR, (datatype, _NUMBERS))
    outputs: Tensors = dict.fromkeys(("OUTPUT0", "OUTPUT1"), (datatype, _NUMBERS))
    write(root, name, inputs, outputs, nodes)


def _write_one(root: Path, name: str, datatype: str, axes: list[int | str | None], nodes: list[onnx.NodeProto]) -> Path:
    return write(root, name, {"INPUT0": (datatype, axes)}, {"OUTPUT0": (datatype, axes)}, nodes)


def _node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)
