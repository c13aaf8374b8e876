"""A model that costs next to nothing, so that what is measured is the serving around it: one 784x10 product."""

from pathlib import Path

import numpy as np

from loadtests.server import BenchError
from models.manifest import MODEL_FILE


def build(repository: Path) -> Path:
    """Write `tiny/1/model.onnx`: UINT8 [N, 28, 28, 1] in, FP32 [N, 10] out, the same weights every time."""
    try:
        from onnx import TensorProto, checker, helper, numpy_helper, save
    except ModuleNotFoundError as error:
        raise BenchError("the tiny model needs the package onnx: pip install onnx") from error

    weights = np.random.default_rng(0).normal(0, 1 / 255, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 28, 28, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    path = repository / "tiny" / "1" / MODEL_FILE
    path.parent.mkdir(parents=True)
    save(model, path)
    return path
