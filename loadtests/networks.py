"""The networks that are measured: written here, with the same weights every time, so that a record can be repeated.

    tiny    one 784x10 product: what is left is the serving around it
    mnist   conv 32, conv 64, pooling, 128, 10, on [28, 28, 1]: 24 million operations an image
    cifar   a residual network of nine layers on [32, 32, 3]: the network takes nearly all of the time

Each takes UINT8 [N, height, width, channels] and answers FP32 [N, 10]. The weights are random: only speed is measured,
and every row has an answer of its own, so a row that gets its neighbour's is noticed.
Checked by tests/unit/test_networks.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.server import BenchError
from models.manifest import MODEL_FILE

_OPSET, _IR_VERSION = 17, 10


def build(name: str, repository: Path) -> Path:
    """Write `<name>/1/model.onnx` into `repository`. Raises BenchError where the package onnx is missing."""
    try:
        from onnx import checker, save
    except ModuleNotFoundError as error:
        raise BenchError("the networks that are measured need the package onnx: pip install onnx") from error

    model = NETWORKS[name]().model(name)
    checker.check_model(model)
    path = repository / name / "1" / MODEL_FILE
    path.parent.mkdir(parents=True)
    save(model, path)
    return path


class _Graph:
    """A network under construction: every method appends one step to the value made last."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        from onnx import TensorProto, helper

        self._helper = helper
        self._float = TensorProto.FLOAT
        self._input = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, channels])
        self._nodes: list[Any] = []  # Any: onnx is not typed, here and below
        self._weights: list[Any] = []
        self._random = np.random.default_rng(0)
        self.last = "image"

    def step(self, operator: str, *inputs: str, **attributes: Any) -> "_Graph":
        output = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, [self.last, *inputs], [output], **attributes))
        self.last = output
        return self

    def scaled(self) -> "_Graph":
        """UINT8 [N, H, W, C] -> FP32 [N, C, H, W] around 0."""
        self.step("Cast", to=self._float)
        self.step("Mul", self.constant(np.array(2 / 255))).step("Sub", self.constant(np.array(1.0)))
        return self.step("Transpose", perm=[0, 3, 1, 2])

    def convolution(self, inputs: int, outputs: int, padding: int = 1) -> "_Graph":
        """3x3, then ReLU."""
        weights = self._normal((outputs, inputs, 3, 3), np.sqrt(2 / (9 * inputs)))
        return self.step("Conv", weights, self._normal((outputs,), 0.1), pads=[padding] * 4).step("Relu")

    def pooling(self, size: int) -> "_Graph":
        return self.step("MaxPool", kernel_shape=[size] * 2, strides=[size] * 2)

    def residual(self, channels: int) -> "_Graph":
        """What went in plus two convolutions of it."""
        before = self.last
        self.convolution(channels, channels).convolution(channels, channels)
        return self.step("Add", before)

    def product(self, inputs: int, outputs: int, scale: float) -> "_Graph":
        return self.step("MatMul", self._normal((inputs, outputs), scale))

    def constant(self, array: "np.ndarray[Any, Any]") -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def model(self, name: str) -> Any:
        """The value made last becomes the output `scores`."""
        self._nodes[-1].output[0] = "scores"
        output = self._helper.make_tensor_value_info("scores", self._float, ["N", 10])
        graph = self._helper.make_graph(self._nodes, name, [self._input], [output], self._weights)
        return self._helper.make_model(
            graph, opset_imports=[self._helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )

    def _normal(self, shape: tuple[int, ...], scale: float) -> str:
        return self.constant(self._random.normal(0, scale, shape))


def _tiny() -> _Graph:
    graph = _Graph(28, 28, 1).step("Cast", to=1).step("Flatten", axis=1)
    return graph.product(784, 10, 1 / 255)


def _mnist() -> _Graph:
    graph = _Graph(28, 28, 1).scaled().convolution(1, 32, padding=0).convolution(32, 64, padding=0).pooling(2)
    graph.step("Flatten", axis=1).product(64 * 12 * 12, 128, np.sqrt(2 / (64 * 12 * 12))).step("Relu")
    return graph.product(128, 10, 1 / np.sqrt(128)).step("Softmax", axis=1)


def _cifar() -> _Graph:
    graph = _Graph(32, 32, 3).scaled().convolution(3, 64)
    graph.convolution(64, 128).pooling(2).residual(128)
    graph.convolution(128, 256).pooling(2).convolution(256, 512).pooling(2).residual(512).pooling(4)
    return graph.step("Flatten", axis=1).product(512, 10, 1 / np.sqrt(512)).step("Softmax", axis=1)


NETWORKS: Mapping[str, Callable[[], _Graph]] = {"tiny": _tiny, "mnist": _mnist, "cifar": _cifar}
