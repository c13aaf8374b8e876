"""int8 versions of image models: the committed MNIST model, and one small graph with what that one has not."""

import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from training.errors import DataUnavailable, VerificationFailed, VersionUnknown
from training.export import quiet as without_torch_notes
from training.quantise import (
    CALIBRATION_IMAGES,
    Images,
    OneByOne,
    Speed,
    check_quantised,
    compare_speed,
    quantise,
)

CHECKOUT = Path(__file__).parents[2]
MNIST_ONNX = CHECKOUT / "models/mnist/2/model.onnx"
SAMPLES = CHECKOUT / "loadtests/samples/mnist.npz"


@pytest.fixture(scope="module")
def images() -> Images:
    with np.load(SAMPLES) as samples:
        found: Images = samples["images"][:300]
    return found


@pytest.fixture(scope="module")
def reference() -> bytes:
    return MNIST_ONNX.read_bytes()


@pytest.fixture(scope="module")
def quantised(reference: bytes, images: Images) -> bytes:
    return quantise(reference, images[:40])


def answers(graph: bytes, images: Images) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(["logits", "probabilities"], {"image": images})
    return found


def test_the_int8_graph_agrees_with_the_float_one(reference: bytes, quantised: bytes, images: Images) -> None:
    unseen = images[40:]
    (logits, probabilities), (expected, _) = answers(quantised, unseen), answers(reference, unseen)
    assert np.mean(logits.argmax(1) == expected.argmax(1)) > 0.99
    assert 0 < np.abs(logits - expected).max() < 0.5
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_it_takes_and_gives_what_the_float_graph_does(reference: bytes, quantised: bytes) -> None:
    before, after = onnx.load_from_string(reference), onnx.load_from_string(quantised)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.opset_import) == list(before.opset_import)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert len(quantised) < 0.4 * len(reference)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_any_batch_size_gives_each_image_its_own_answer(quantised: bytes, images: Images, size: int) -> None:
    (alone, _), (together, _) = answers(quantised, images[:1]), answers(quantised, images[:size])
    assert together.shape == (size, 10)
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)


def test_only_standard_operators_are_used_and_convolutions_have_int8_weights(quantised: bytes) -> None:
    model = onnx.load_from_string(quantised)
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"}
    kernels = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".weight_quantized")]
    assert [tensor.data_type for tensor in kernels] == [onnx.TensorProto.INT8] * 5
    assert max(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() for tensor in kernels) == 64  # 7 bits


def test_the_first_convolution_stays_float(quantised: bytes) -> None:
    model = onnx.load_from_string(quantised)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    (kernel,) = [tensor for tensor in model.graph.initializer if tensor.name == first.input[1]]
    assert kernel.data_type == onnx.TensorProto.FLOAT


def test_another_process_makes_the_same_bytes(quantised: bytes) -> None:
    program = (
        "import sys, numpy; from pathlib import Path; from training.quantise import quantise; "
        "images = numpy.load(sys.argv[2])['images'][:40]; "
        "sys.stdout.buffer.write(quantise(Path(sys.argv[1]).read_bytes(), images))"
    )
    again = subprocess.run(
        [sys.executable, "-c", program, str(MNIST_ONNX), str(SAMPLES)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        check=True,
        capture_output=True,
    )
    assert again.stdout == quantised  # and nothing else was printed
    assert again.stderr == b""


def test_nothing_stays_behind(
    reference: bytes,
    images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    quantised = quantise(reference, images[:2])
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path).encode() not in quantised
    assert (logging.getLogger().handlers, logging.root.manager.disable) == (handlers, disabled)
    assert capfd.readouterr() == ("", "")


class Residual(nn.Module):
    """What the MNIST model has not: colours, padding at the first convolution, a sum of two branches, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (image.permute(0, 3, 1, 2).float() - 120) / 60
        stem = torch.relu(self.stem(pixels))
        both = torch.relu(stem + self.branch(stem))
        logits = self.head(nn.functional.gelu(self.last(both)).mean((2, 3)))
        return logits, logits.softmax(1)


def test_residual_sums_and_gelu_are_quantised_around() -> None:
    torch.manual_seed(0)
    with without_torch_notes():
        program = torch.onnx.export(
            Residual().eval(),
            (torch.zeros((2, 12, 12, 3), dtype=torch.uint8),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        )
    assert program is not None
    reference = program.model_proto.SerializeToString()
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
    (logits, _), (expected, _) = answers(quantise(reference, images[:20]), images), answers(reference, images)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_calibration_takes_single_images_evenly_from_all() -> None:
    many = np.arange(3 * CALIBRATION_IMAGES, dtype=np.uint32).astype(np.uint8).reshape(-1, 1, 1, 1)
    reader = OneByOne("image", many)
    feeds = []
    while (feed := reader.get_next()) is not None:
        feeds.append(feed["image"])
    assert len(feeds) == CALIBRATION_IMAGES
    assert {feed.shape for feed in feeds} == {(1, 1, 1, 1)}
    np.testing.assert_array_equal((feeds[0], feeds[-1]), (many[:1], many[-1:]))


def test_images_that_the_model_does_not_take_are_refused(reference: bytes) -> None:
    with pytest.raises(DataUnavailable, match="no images"):
        quantise(reference, np.empty((0, 28, 28, 1), np.uint8))
    with pytest.raises(VersionUnknown, match=r"takes uint8 \['\w+', 28, 28, 1\].* uint8 \[5, 32, 32, 3\]"):
        quantise(reference, np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(VersionUnknown, match="float32"):
        quantise(reference, np.zeros((5, 28, 28, 1), np.float32))
    with pytest.raises(DataUnavailable, match="no images"):
        compare_speed(reference, reference, np.empty((0, 28, 28, 1), np.uint8))


def test_a_model_of_rows_is_refused(images: Images) -> None:
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["batch", 7])
    answer = onnx.helper.make_tensor_value_info("prediction", onnx.TensorProto.FLOAT, ["batch", 7])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["rows"], ["prediction"])], "g", [rows], [answer])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(VersionUnknown, match=r"Only a model of images.* takes float \['batch', 7\]"):
        quantise(model.SerializeToString(), images)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_both_graphs_are_measured(reference: bytes, quantised: bytes, images: Images, batch_size: int) -> None:
    speed = compare_speed(reference, quantised, images[:5], batch_size=batch_size, rounds=3)
    assert (speed.batch_size, speed.rounds) == (batch_size, 3)
    assert min(speed.reference_us, speed.candidate_us) > 0
    assert speed.ratio == speed.reference_us / speed.candidate_us


def measured(ratio: float) -> Speed:
    return Speed(reference_us=100.0, candidate_us=100.0 / ratio, ratio=ratio, batch_size=16, rounds=3)


def test_a_model_as_good_and_fast_enough_passes() -> None:
    check_quantised(0.9968, 0.9948, measured(1.8))
    check_quantised(0.9968, 0.9970, measured(3.0))


def test_too_great_a_loss_is_refused() -> None:
    with pytest.raises(VerificationFailed, match=r"99\.47%.*99\.68%: 0\.21 points lost, 0\.2 allowed\.$"):
        check_quantised(0.9968, 0.9947, measured(3.0))
    with pytest.raises(VerificationFailed, match="points lost"):
        check_quantised(0.9968, math.nan, measured(3.0))


def test_too_small_a_gain_is_refused() -> None:
    with pytest.raises(VerificationFailed, match=r"80 µs an image in batches of 16.*100 µs: 1\.25 times.*1\.8 wanted"):
        check_quantised(0.9968, 0.9968, measured(1.25))


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(VerificationFailed, match=r"points lost.*; it takes"):
        check_quantised(0.9, 0.8, measured(1.0))
