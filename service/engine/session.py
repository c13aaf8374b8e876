"""onnxruntime behind a small face: load a file, say what it takes and gives, run arrays.

Settings that matter for many small batches, from onnxruntime's own issues and our measurements:
    threads are set explicitly   the default takes every core of the host, not of the container, and pins them
    spinning is off              waiting threads would take the cores that the HTTP side and other instances need
    sequential execution         these graphs are chains; a second pool only costs
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.manifest import Datatype, TensorSpec
from service.batching.arena import MOST_ITEM_AXES
from service.engine.providers import PROVIDERS, Device, Options

_DATATYPE_OF_ORT: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16


class UnservableModel(Exception):
    """The model cannot be served; the message says what it has and what is needed. Source of the index's reasons."""


class RunFailed(Exception):
    """A run raised or gave something other than one row per item."""


class Session:
    """One onnxruntime session. `run` may be called by one thread at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises UnservableModel: not an ONNX file, an operator unknown, a tensor of a type that the protocol lacks."""
        self._session = self._open(path, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.inputs = tuple(_spec(node, "input") for node in inputs)
        self.outputs = tuple(_spec(node, "output") for node in outputs)
        self.batch_axis_by_name = _batch_axis_by_name(inputs, outputs)
        self._output_names = [spec.name for spec in self.outputs]
        self._options: ort.RunOptions | None = None
        self._bfloats = {spec.name for spec in self.inputs + self.outputs if spec.datatype == "BF16"}

    def _open(self, path: Path, threads: int) -> ort.InferenceSession:
        return open_onnxruntime(path, session_options(threads), [(PROVIDERS["cpu"], {})])

    @property
    def description(self) -> str:
        return str(self._session.get_modelmeta().description)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """onnxruntime does not print why a run fails: for runs that may."""
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4
        try:
            yield
        finally:
            self._options = None

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Outputs in the order of `outputs`. Raises RunFailed.

        BF16 is its bits in uint16, BYTES are str in object arrays, both ways.
        """
        try:
            if self._bfloats:
                return self._run_values(feeds)
            return self._session.run(self._output_names, feeds, self._options)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise RunFailed(_first_line(error)) from error

    def _run_values(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """numpy has no bfloat16, so these tensors go in and come out as onnxruntime's own values."""
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if name in self._bfloats
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        outputs = self._session.run_with_ort_values(self._output_names, values, self._options)
        return [
            _bits(value) if name in self._bfloats else value.numpy()
            for name, value in zip(self._output_names, outputs, strict=True)
        ]


def session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors reach us as exceptions; warnings name nodes nobody asked about
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_onnxruntime(
    path: Path, options: ort.SessionOptions, wanted: list[tuple[str, Options]]
) -> ort.InferenceSession:
    """A session of the first of the `wanted` providers, which is not replaced, now or in a run. UnservableModel."""
    first = wanted[0][0]
    if first not in (available := ort.get_available_providers()):
        raise UnservableModel(f"the installed onnxruntime has {', '.join(available)}; expected {first}")
    try:
        session = ort.InferenceSession(path, options, providers=wanted, enable_fallback=0)
    except Exception as error:
        raise UnservableModel(f"{path.name}: {_first_line(error)}") from error
    if (taken := session.get_providers()[0]) != first:
        # onnxruntime falls back to the CPU without an error when a CUDA library is missing.
        raise UnservableModel(
            f"{path.name}: asked for {first}, onnxruntime took {taken}; its log says why, "
            "and --engine.device cpu does without"
        )
    return session


def default_device() -> Device:
    """CUDA where this onnxruntime has it and the driver shows a device; the package alone lists CUDA without one."""
    has_driver = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    return "cuda" if has_driver and "CUDAExecutionProvider" in ort.get_available_providers() else "cpu"


def _spec(node: Any, side: str) -> TensorSpec:  # Any: onnxruntime's NodeArg is untyped
    if node.type not in _DATATYPE_OF_ORT:
        raise UnservableModel(
            f"{side} {node.name!r} is {node.type}; expected a tensor of {', '.join(_DATATYPE_OF_ORT)}"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    if len(shape) > MOST_ITEM_AXES:
        raise UnservableModel(f"{side} {node.name!r} has {len(shape)} axes; expected at most {MOST_ITEM_AXES}")
    return TensorSpec(node.name, _DATATYPE_OF_ORT[node.type], shape)


def _batch_axis_by_name(inputs: list[Any], outputs: list[Any]) -> bool:  # Any: as above
    """What the file says: every tensor's first dimension is variable, and the inputs' has one name, or none."""
    firsts = [node.shape[0] if node.shape else 0 for node in (*inputs, *outputs)]
    names = {first for first in firsts[: len(inputs)] if first is not None}
    return bool(inputs) and len(names) <= 1 and not any(isinstance(first, int) for first in firsts)


def _bits(value: Any) -> npt.NDArray[np.uint16]:  # Any: onnxruntime's OrtValue is untyped
    """A copy of a bfloat16 tensor in the host's memory, which outputs are given in unless bound elsewhere."""
    assert value.device_name() == "cpu", f"bug: an output on {value.device_name()}"
    shape = tuple(value.shape())
    bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bits, np.uint16).reshape(shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
