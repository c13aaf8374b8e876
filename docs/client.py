"""A client of a Shoal server, to copy beside a program: numpy in and out, on httpx. `docs/client.md` shows it.

Predictions change nothing on the server, so one that is refused with 503 is sent again, as often as `attempts` says.
"""

import json
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # Any: the element type is the tensor's
Tensors = dict[str, Array]

HEADER_LENGTH = "Inference-Header-Content-Length"
NUMPY_OF = {  # little-endian, as on the wire; BF16, which numpy has not, as its bits
    "BOOL": "?",
    **{f"{kind}INT{8 * size}": f"<{code}{size}" for kind, code in (("", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
    **{"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2"},
}
DATATYPE_OF = {np.dtype(code): name for name, code in NUMPY_OF.items() if name != "BF16"}


class ShoalError(Exception):
    """An answer that is none. `message` names the field and what was expected; the server's log has `request_id`."""

    def __init__(self, status: int, message: str, request_id: str) -> None:
        super().__init__(f"{status}: {message} (request {request_id})")
        self.status, self.message, self.request_id = status, message, request_id


class Label(NamedTuple):
    label: str
    probability: float


class Client:
    """Keeps its connections, so make one and use it from any thread; close it, or use it as a context.

    attempts         how often a request is sent where the server answers 503, the first time included
    longest_wait_s   between two of them, whatever Retry-After says
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 4,
        longest_wait_s: float = 2.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        # Tensors hardly shrink: what compressing them saves on the wire costs more where they are computed.
        headers = {"Accept-Encoding": "identity"}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport, headers=headers)
        self._attempts = attempts
        self._longest_wait_s = longest_wait_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether the server, or this model, answers predictions now. Raises ShoalError 404 for an unknown model."""
        answer = self._http.get("/v2/health/ready" if model is None else f"{_path(model, version)}/ready")
        if answer.status_code != 503:
            _check(answer)
        return answer.is_success

    def predict(self, model: str, image: bytes, top_k: int = 5) -> list[Label]:
        """The best labels of one image file (JPEG, PNG, WebP, GIF, BMP), most probable first."""
        path = f"/predict/{quote(model, safe='')}"
        answer = self._post(path, {"Content-Type": "application/octet-stream"}, image, {"top_k": top_k})
        return [Label(**label) for label in answer.json()["predictions"][0]["top"]]

    def infer_json(self, model: str, inputs: Mapping[str, Array], version: str | None = None) -> Tensors:
        """All outputs by name. Easy to read on the wire; for NaN, infinity and BF16 use `infer_binary`."""
        tensors = [{**_describe(name, array), "data": array.ravel().tolist()} for name, array in inputs.items()]
        body = json.dumps({"inputs": tensors}, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        outputs = self._post(f"{_path(model, version)}/infer", headers, body).json()["outputs"]
        return {
            output["name"]: np.array(output["data"], NUMPY_OF.get(output["datatype"], "O")).reshape(output["shape"])
            for output in outputs
        }

    def infer_binary(self, model: str, inputs: Mapping[str, Array], version: str | None = None) -> Tensors:
        """All outputs by name. The tensors are sent and answered as they lie in memory, behind a head of JSON."""
        blobs = [_to_bytes(array) for array in inputs.values()]
        tensors = [
            {**_describe(name, array), "parameters": {"binary_data_size": len(blob)}}
            for (name, array), blob in zip(inputs.items(), blobs, strict=True)
        ]
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        answer = self._post(f"{_path(model, version)}/infer", headers, b"".join([head, *blobs]))
        at = int(answer.headers[HEADER_LENGTH])
        outputs: Tensors = {}
        for output in json.loads(answer.content[:at])["outputs"]:
            end = at + output["parameters"]["binary_data_size"]
            array = _from_bytes(output["datatype"], answer.content[at:end])
            outputs[output["name"]], at = array.reshape(output["shape"]), end
        return outputs

    def _post(
        self, path: str, headers: dict[str, str], body: bytes, query: dict[str, int] | None = None
    ) -> httpx.Response:
        answer = self._http.post(path, params=query, headers=headers, content=body)
        for _ in range(self._attempts - 1):
            if answer.status_code != 503:
                break
            time.sleep(min(float(answer.headers.get("Retry-After", 1)), self._longest_wait_s))
            answer = self._http.post(path, params=query, headers=headers, content=body)
        return _check(answer)


def _path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _check(answer: httpx.Response) -> httpx.Response:
    """Raises ShoalError."""
    if answer.is_success:
        return answer
    is_json = answer.headers.get("Content-Type") == "application/json"  # a proxy's answer may be anything
    message = answer.json().get("error", "") if is_json else answer.text
    raise ShoalError(answer.status_code, message, answer.headers.get("X-Request-ID", ""))


def _describe(name: str, array: Array) -> dict[str, Any]:  # Any: JSON
    """Strings, in an array of str or object, are BYTES."""
    datatype = "BYTES" if array.dtype.kind in "UO" else DATATYPE_OF[array.dtype.newbyteorder("<")]
    return {"name": name, "shape": list(array.shape), "datatype": datatype}


def _to_bytes(array: Array) -> bytes:
    """Row-major, little-endian; each string behind its length."""
    if array.dtype.kind not in "UO":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(text).encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _from_bytes(datatype: str, data: bytes) -> Array:
    """One axis."""
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY_OF[datatype])
    texts: list[str] = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4 + size
        texts.append(data[at - size : at].decode())
    return np.array(texts, object)
