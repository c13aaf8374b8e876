"""FastAPI on uvicorn without batching: every request runs onnxruntime for its own row.

    PEER_MODEL    the ONNX file
    POST /raw     the row's bytes in, those of the outputs out
    POST /json    its numbers in, the outputs' out

The run is called on the event loop: with one thread a process nothing else could run meanwhile, and a thread pool was
slower. Started with the Python of `.peers/fastapi`, so this file imports nothing of ours; see loadtests/sides.py for
the flags of uvicorn.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64", "tensor(double)": "float64"}

_options = ort.SessionOptions()
_options.intra_op_num_threads = _options.inter_op_num_threads = 1
_session = ort.InferenceSession(os.environ["PEER_MODEL"], _options, providers=["CPUExecutionProvider"])
(_node,) = _session.get_inputs()
_shape = (1, *_node.shape[1:])
_dtype = np.dtype(_DTYPES[_node.type])

app = FastAPI(openapi_url=None)


@app.post("/raw")
async def raw(request: Request) -> Response:
    outputs = _run(np.frombuffer(await request.body(), _dtype))
    return Response(b"".join(output.tobytes() for output in outputs), media_type="application/octet-stream")


@app.post("/json")
async def numbers(request: Request) -> Response:
    outputs = _run(np.array(await request.json(), _dtype))
    return JSONResponse([output[0].tolist() for output in outputs])


def _run(row: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:  # Any: of whatever element type the model takes
    outputs: list[npt.NDArray[Any]] = _session.run(None, {_node.name: row.reshape(_shape)})
    return outputs
