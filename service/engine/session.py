"""onnxruntime behind a small face: load a file, say what it takes and gives, run arrays.

Settings that matter for many small batches, from onnxruntime's own issues and our measurements:
    threads are set explicitly   the default takes every core of the host, not of the container, and pins them
    spinning is off              waiting threads would take the cores that the HTTP side and other instances need
    sequential execution         these graphs are chains; a second pool only costs
"""

from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnxruntime as ort

from models.manifest import Datatype, TensorSpec

Device = Literal["cpu", "cuda"]

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
}


class UnservableModel(Exception):
    """The model cannot be served; the message says what it has and what is needed. Source of the index's reasons."""


class RunFailed(Exception):
    """A run raised or gave something other than one row per item."""


class Session:
    """One onnxruntime session. `run` may be called by one thread at a time."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        """Raises UnservableModel: not an ONNX file, an operator unknown, a signature that cannot be batched."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # errors reach us as exceptions; warnings name nodes nobody asked about
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        if providers[0] not in (available := ort.get_available_providers()):
            raise UnservableModel(f"the installed onnxruntime has {', '.join(available)}; expected {providers[0]}")
        if device == "cuda":
            ort.preload_dlls(directory="")  # CUDA and cuDNN from the packages beside onnxruntime-gpu
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise UnservableModel(f"{path.name}: {_first_line(error)}") from error
        if (taken := self._session.get_providers()[0]) != providers[0]:
            # onnxruntime falls back to the CPU without an error when a CUDA library is missing.
            raise UnservableModel(
                f"{path.name}: asked for {providers[0]}, onnxruntime took {taken}; its log says why, "
                "and --engine.device cpu does without"
            )
        self.inputs = tuple(_spec(node, "input") for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, "output") for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    @property
    def description(self) -> str:
        return str(self._session.get_modelmeta().description)

    def run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Outputs in the order of `outputs`. Raises RunFailed."""
        try:
            return self._session.run(self._output_names, feeds)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise RunFailed(_first_line(error)) from error


def default_device() -> Device:
    """CUDA where this onnxruntime has it and the driver shows a device; the package alone lists CUDA without one."""
    has_driver = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    return "cuda" if has_driver and "CUDAExecutionProvider" in ort.get_available_providers() else "cpu"


def _spec(node: Any, side: str) -> TensorSpec:  # Any: onnxruntime's NodeArg is untyped
    if node.type not in _DATATYPE_OF_ORT:
        raise UnservableModel(
            f"{side} {node.name!r} is {node.type}; expected a tensor of {', '.join(_DATATYPE_OF_ORT)}"
        )
    shape = list(node.shape)
    if not shape or isinstance(shape[0], int):
        raise UnservableModel(f"{side} {node.name!r} has shape {shape}; expected a variable first dimension, the batch")
    if not all(isinstance(size, int) for size in shape[1:]):
        raise UnservableModel(f"{side} {node.name!r} has shape {shape}; only the first dimension may be variable")
    if 0 in shape[1:]:
        raise UnservableModel(f"{side} {node.name!r} has shape {shape}; expected items of at least one element")
    return TensorSpec(node.name, _DATATYPE_OF_ORT[node.type], (-1, *shape[1:]))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
