"""The memory of a bucket: host buffers that rows are gathered into, bound device buffers, and the copies between.

    host      the device is the CPU: one buffer is both, and nothing is copied
    pinned    page-locked host memory, where onnxruntime offers the device's: copied by the device itself
    pageable  else: numpy's memory, copied through a staging buffer of the driver

Copies end before they return, as do runs: onnxruntime's Python interface has no event to wait for
on a stream of one's own.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.engine.providers import PROVIDERS, Device

log = logging.getLogger(__name__)

Kind = Literal["host", "pinned", "pageable"]
Copy = Callable[[], None]


class Buffer(NamedTuple):
    """array    in the host's memory, zeros at first; what is written there the device sees after an upload
    host     the value that holds it, if it is not numpy's
    bound    the value on the device
    """

    array: npt.NDArray[Any]  # Any: the element type is the tensor's
    host: Any  # Any: onnxruntime's OrtValue is untyped
    bound: Any


class Memory:
    """Of one device. `pinned` is onnxruntime's handle for its page-locked memory."""

    def __init__(self, kind: Kind, number: int = 0, pinned: Any = None) -> None:  # Any: onnxruntime's OrtMemoryInfo
        self.kind = kind
        self._number = number
        self._pinned = pinned

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        if self.kind == "host":
            array = np.zeros(shape, dtype)
            return Buffer(array, None, ort.OrtValue.ortvalue_from_numpy(array))
        bound = self._on_device(shape, dtype)
        if self.kind == "pageable":
            return Buffer(np.zeros(shape, dtype), None, bound)
        host = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, memory_info=self._pinned)
        array = host.numpy()
        assert array.ctypes.data == host.data_ptr(), "bug: pinned memory is seen through a copy"
        array.fill(0)
        return Buffer(array, host, bound)

    def copies(self, buffers: Sequence[Buffer]) -> tuple[Copy, Copy]:
        """(upload, download): of all `buffers` to the device, and from it."""
        hosts, bound = [buffer.host for buffer in buffers], [buffer.bound for buffer in buffers]
        match self.kind:
            case "host":
                return _nothing, _nothing
            case "pinned":
                return lambda: ort.copy_tensors(hosts, bound), lambda: ort.copy_tensors(bound, hosts)
            case "pageable":
                return lambda: _update(buffers), lambda: _fetch(buffers)

    def _on_device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:  # Any: onnxruntime's OrtValue
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, "cuda", self._number)


def memory_for(device: Device, number: int) -> Memory:
    """Pinned where onnxruntime has it and a copy through it arrives, else pageable."""
    if device == "cpu":
        return Memory("host")
    try:
        pinned = _pinned_memory(number)
        if pinned is not None and _arrives(memory := Memory("pinned", number, pinned)):
            return memory
    except Exception as error:  # noqa: BLE001 onnxruntime's errors share no class of their own
        log.info("no pinned memory on GPU %d: %s", number, error)
    return Memory("pageable", number)


def _pinned_memory(number: int) -> Any:  # Any: onnxruntime's OrtMemoryInfo; None: it offers none
    devices = _cuda_devices()
    if not devices:  # onnxruntime lists a provider's devices once its library is registered
        library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
        ort.register_execution_provider_library(PROVIDERS["cuda"], str(library))
        devices = _cuda_devices()
    for place, device in enumerate(devices):
        if device.ep_options.get("device_id", str(place)) == str(number):
            return device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    return None


def _cuda_devices() -> list[Any]:  # Any: onnxruntime's OrtEpDevice is untyped
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDERS["cuda"]]


def _arrives(memory: Memory) -> bool:
    """Whether numbers come back from the device as they went."""
    buffer = memory.buffer((64,), np.dtype(np.int32))
    buffer.array[:] = np.arange(64)
    upload, download = memory.copies([buffer])
    upload()
    buffer.array.fill(0)
    download()
    return bool((buffer.array == np.arange(64)).all())


def _update(buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        buffer.bound.update_inplace(buffer.array)


def _fetch(buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        np.copyto(buffer.array, buffer.bound.numpy())


def _nothing() -> None:
    pass
