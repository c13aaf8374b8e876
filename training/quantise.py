"""A published image model in int8: a quarter of the size, faster where the CPU multiplies bytes, and as good.

    float graph ──► ranges of its tensors on training images ──► int8 graph ──compare_speed──► check_quantised

The int8 graph takes and gives what the float one does. It is plain ONNX in QDQ form: DequantizeLinear before each
convolution and QuantizeLinear behind it, which the runtime fuses into one integer kernel where it has one. Where it
has none the same graph runs, only not faster. So accuracy and speed are both measured, and what misses one of them
is not published.
Checked by tests/training/test_quantise.py.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from msgspec import Struct
from onnx import ModelProto, checker, load_from_string
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from training.errors import DataUnavailable, VerificationFailed, VersionUnknown

MAX_ACCURACY_LOSS = 0.002
MIN_SPEEDUP = 1.8

# Chosen on mnist/1 and on two whitened_cnn (CIFAR-10, Fashion-MNIST) after 6 epochs, by how many labels differ from the
# float model's on the first 5,000 test images of either. mnist/1 keeps all 10,000 labels whatever is chosen. Speed: one
# thread of a CPU with AVX-512 VNNI, onnxruntime 1.32, medians of 10 to 60 runs.
#
#   ranges    (all convolutions int8) percentile 99.999 of 1,024 images: 44 and 35, of 256: 63 and 32 · 99.99: 57 and 49
#             · 99.9: 86 and 77 · min-max: 79 and 57 · entropy, 256 images: 85 and 70. The few largest numbers would
#             coarsen all others.
#   first     convolution float: 60 → 50 and 50 → 26, and 1 to 8 % faster: what normalises runs before it, and is slow
#             in the channels-last layout that integer convolutions ask for.
#   weights   one scale per tensor instead of one per channel: 59 → 210 and 42 → 50, and no faster
#   others    Relu and MaxPool fuse with int8 convolutions: mnist/1 2.2 → 2.5 times as fast as float, one image at a
#             time. Gelu has no int8 kernel and stays float: 8 % of the time. Gemm and Softmax take less than 1 %.
CALIBRATION_IMAGES = 1024  # kept in memory with all that they lead to: 2 GB for a whitened_cnn of width 64
PERCENTILE = 99.999
QUANTISED = ["Conv", "Relu", "MaxPool", "Add"]
# Without VNNI an x86 CPU adds pairs of products in 16 bits, which 8-bit weights can overflow and 7-bit weights cannot
# (2 * 255 * 64 < 2**15): it would answer worse than the CPU that measured. 7 bits cost no speed; of 10,000 labels 64
# instead of 45 differ from the float model's (CIFAR-10, 10 epochs) and 81 instead of 92 (Fashion-MNIST).
SEVEN_BIT_WEIGHTS = True

Images = npt.NDArray[np.uint8]


class Speed(Struct, frozen=True):
    """CPU time of one thread for one item: the median of `rounds` runs of a batch. A ratio above 1 is faster."""

    reference_us: float
    candidate_us: float
    ratio: float
    batch_size: int
    rounds: int


def quantise(onnx: bytes, images: Images) -> bytes:
    """The same graph with int8 convolutions; equal arguments give equal bytes.

    onnx     takes one tensor, uint8 [batch, height, width, channels]
    images   uint8 [n, height, width, channels] of the training set; CALIBRATION_IMAGES of them, evenly spaced, are run
    Raises   DataUnavailable without images · VersionUnknown where the graph takes something else
    """
    model = load_from_string(onnx)
    reader = OneByOne(image_input(open_single_threaded(onnx), images), images)
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "quantised.onnx"
        quantize_static(
            model,
            path,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "Conv"][:1],
            per_channel=True,
            reduce_range=SEVEN_BIT_WEIGHTS,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
        quantised = load_from_string(path.read_bytes())
    keep_origin(quantised, model)
    checker.check_model(quantised, full_check=True)
    return bytes(quantised.SerializeToString(deterministic=True))


def compare_speed(reference: bytes, candidate: bytes, images: Images, batch_size: int = 16, rounds: int = 31) -> Speed:
    """Run two graphs in turn on the same batch, on one thread.

    images   uint8 [n, height, width, channels], repeated where n is less than `batch_size`
    Raises   DataUnavailable without images · VersionUnknown where a graph takes something else
    """
    sessions = [open_single_threaded(onnx) for onnx in (reference, candidate)]
    names = [image_input(session, images) for session in sessions]
    batch = images[np.arange(batch_size) % len(images)]
    spent: tuple[list[int], list[int]] = ([], [])
    for turn in range(rounds + 1):
        for session, name, times in zip(sessions, names, spent, strict=True):
            # CPU time, because the clock on the wall also counts other processes; in turn, because the pace of a core
            # drifts over seconds and must not favour one of the two.
            start = time.thread_time_ns()
            session.run(None, {name: batch})
            if turn:  # the first allocates
                times.append(time.thread_time_ns() - start)
    reference_us, candidate_us = (statistics.median(times) / 1e3 / batch_size for times in spent)
    return Speed(reference_us, candidate_us, reference_us / candidate_us, batch_size, rounds)


def check_quantised(reference_accuracy: float, candidate_accuracy: float, speed: Speed) -> None:
    """Both accuracies on the same test set, 0..1. Raises VerificationFailed saying what is missing."""
    missing = []
    lost = round(reference_accuracy - candidate_accuracy, 9)  # 0.9968 - 0.9948 is a little more than 0.002
    if not lost <= MAX_ACCURACY_LOSS:  # also when it is not a number
        missing.append(
            f"it is right on {candidate_accuracy:.2%} of the test set, the float model on {reference_accuracy:.2%}: "
            f"{lost * 100:.2f} points lost, {MAX_ACCURACY_LOSS * 100:g} allowed"
        )
    if not speed.ratio >= MIN_SPEEDUP:
        missing.append(
            f"it takes {speed.candidate_us:.0f} µs an image in batches of {speed.batch_size}, the float model "
            f"{speed.reference_us:.0f} µs: {speed.ratio:.2f} times as fast, {MIN_SPEEDUP:g} wanted"
        )
    if missing:
        raise VerificationFailed(f"The int8 model is not worth publishing: {'; '.join(missing)}.")


class OneByOne:
    """Single images: the library stacks what it collects, and a shorter last batch would not stack."""

    def __init__(self, name: str, images: Images) -> None:
        chosen = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).round().astype(int)
        self.feeds: Iterator[dict[str, Images]] = ({name: images[at : at + 1]} for at in chosen)

    def get_next(self) -> dict[str, Images] | None:
        return next(self.feeds, None)


def image_input(session: onnxruntime.InferenceSession, images: Images) -> str:
    """The name of the graph's only input. Raises DataUnavailable or VersionUnknown where `images` do not fit it."""
    inputs = session.get_inputs()
    wanted = ", ".join(f"{entry.type.removeprefix('tensor(').removesuffix(')')} {entry.shape}" for entry in inputs)
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
        raise VersionUnknown(
            f"Only a model of images, uint8 [n, height, width, channels], can be int8; it takes {wanted}."
        )
    if len(images) == 0:
        raise DataUnavailable("There are no images to calibrate or measure an int8 model with.")
    if images.dtype != np.uint8 or list(images.shape[1:]) != inputs[0].shape[1:]:
        raise VersionUnknown(f"The model takes {wanted}; these images are {images.dtype} {list(images.shape)}.")
    return str(inputs[0].name)


def open_single_threaded(onnx: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the caller's thread, whose CPU time is read
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def keep_origin(quantised: ModelProto, model: ModelProto) -> None:
    """Facts and producer as the float graph has them; the library adds notes to itself and shapes it inferred."""
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    del quantised.metadata_props[:], quantised.graph.value_info[:]
    quantised.metadata_props.extend(model.metadata_props)
    domains = {entry.domain for entry in quantised.opset_import} | {node.domain for node in quantised.graph.node}
    assert domains == {""}, f"bug: {domains} are more than standard ONNX"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's prints, and its advice to optimise a graph that the exporter has optimised."""
    root, silent, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(silent)  # a root logger without one is given one that writes to stderr, and keeps it
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)
