"""mosec, as fast as its own means go: worker processes that run whole batches, each on one thread.

    PEER_MODEL      the ONNX file          PEER_WORKERS   worker processes
    PEER_BODY       raw: the row's bytes in, those of the outputs out · json: its numbers in, the outputs' out
    PEER_MAX_BATCH  most rows one run takes
    PEER_WAIT_MS    how long a batch waits for company; mosec waits as long even when nothing else is running

Raw rows are decoded with the rest of their batch, in one copy; JSON by msgspec, which mosec brings along.
Started with the Python of `.peers/mosec`, so this file imports nothing of ours; mosec reads --port and --address.
"""

import os
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from mosec import Server, Worker
from mosec.errors import DecodingError

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64", "tensor(double)": "float64"}


class _Model(Worker):
    def __init__(self) -> None:
        super().__init__()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
        (node,) = self.session.get_inputs()
        self.input = node.name
        self.shape = (-1, *node.shape[1:])
        self.dtype = np.dtype(_DTYPES[node.type])

    def run(self, rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:  # Any: of whatever element type the model takes
        outputs: list[npt.NDArray[Any]] = self.session.run(None, {self.input: rows.reshape(self.shape)})
        return outputs


class Raw(_Model):
    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        outputs = self.run(np.frombuffer(b"".join(data), self.dtype))
        if len(outputs) == 1:
            return [row.tobytes() for row in outputs[0]]
        return [b"".join(row.tobytes() for row in rows) for rows in zip(*outputs, strict=True)]

    def serialize(self, data: bytes) -> bytes:
        return data


class Json(_Model):
    def deserialize(self, data: bytes) -> list[int | float]:
        try:
            return msgspec.json.decode(data, type=list[int | float])
        except msgspec.DecodeError as error:
            raise DecodingError from error

    def forward(self, data: list[list[int | float]]) -> list[list[Any]]:  # Any: numbers, nested as the outputs are
        outputs = self.run(np.array(data, self.dtype))
        return [list(rows) for rows in zip(*(output.tolist() for output in outputs), strict=True)]

    def serialize(self, data: list[Any]) -> bytes:
        return msgspec.json.encode(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Json if os.environ["PEER_BODY"] == "json" else Raw,
        num=int(os.environ["PEER_WORKERS"]),
        max_batch_size=int(os.environ["PEER_MAX_BATCH"]),
        max_wait_time=int(os.environ["PEER_WAIT_MS"]),
    )
    server.run()
