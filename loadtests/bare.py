"""onnxruntime without a server: the right answers, and the rate that no server on this machine can pass.

As many processes of one thread as there are cores, each running the same rows in batches as fast as it can: nothing
waits, nothing is copied, no client takes a share. What a server's CPU time exceeds this one by is the cost of serving.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from msgspec import Struct

from loadtests.answers import SAMPLES_FILE
from loadtests.server import BenchError
from models.manifest import DATATYPE_OF, NUMPY_OF

BATCHES = (1, 8, 64)
ROWS = 256
_START_S = 60.0

Array = npt.NDArray[Any]  # Any: of whatever element type the model takes


class Bare(Struct, frozen=True):
    """One measurement. `items` and `cpu_seconds` are of all processes together."""

    batch: int
    processes: int
    items: int
    seconds: float
    cpu_seconds: float


def open_model(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rows_for(path: Path) -> Array:
    """[ROWS, *shape] for the model's only input: MNIST's test images where they fit, else noise, always the same."""
    inputs = open_model(path).get_inputs()
    if len(inputs) != 1 or not all(isinstance(size, int) for size in inputs[0].shape[1:]):
        raise BenchError(f"{path.parent.parent.name}: expected one input whose shape is fixed except for the batch")
    element = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    dtype = NUMPY_OF[DATATYPE_OF[{"float": "float32", "double": "float64"}.get(element, element)]]
    shape = tuple(inputs[0].shape[1:])
    with np.load(SAMPLES_FILE, allow_pickle=False) as file:
        images: Array = file["images"][:ROWS]
    if images.shape[1:] == shape and images.dtype == dtype:
        return images
    noise = np.random.default_rng(0)
    if dtype.kind == "f":
        return noise.random((ROWS, *shape)).astype(dtype)
    return noise.integers(0, 2 if dtype.kind == "b" else 128, (ROWS, *shape)).astype(dtype)


def answers(path: Path, rows: Array) -> dict[str, Array]:
    """Every output for `rows`, run one at a time."""
    session = open_model(path)
    names = [node.name for node in session.get_outputs()]
    each = [session.run(names, {session.get_inputs()[0].name: rows[i : i + 1]}) for i in range(len(rows))]
    return {name: np.concatenate([outputs[i] for outputs in each]) for i, name in enumerate(names)}


def measure(path: Path, rows: Array, processes: int, seconds: float) -> Iterator[Bare]:
    """One measurement for each of BATCHES, all processes running at once."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _prepare, (path, rows, start)) as pool:
        for batch in BATCHES:
            # Each waits at the barrier, so no process takes two of these.
            seen = [future.result() for future in [pool.submit(_loop, batch, seconds) for _ in range(processes)]]
            items, cpu_seconds = (sum(column) for column in list(zip(*seen, strict=True))[:2])
            yield Bare(batch, processes, int(items), max(each[2] for each in seen), cpu_seconds)


def _prepare(path: Path, rows: Array, start: Barrier) -> None:
    global _session, _rows, _start
    _session, _rows, _start = open_model(path), rows, start


_session: ort.InferenceSession
_rows: Array
_start: Barrier


def _loop(batch: int, seconds: float) -> tuple[int, float, float]:
    """(items, CPU seconds, seconds) of this process."""
    name = _session.get_inputs()[0].name
    feeds = [{name: _rows[at : at + batch]} for at in range(0, len(_rows) - batch + 1, batch)]
    _session.run(None, feeds[0])  # the first run of a size allocates
    _start.wait(_START_S)
    items, begun, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() < begun + seconds:
        for feed in feeds[items // batch % len(feeds) :][:8]:
            _session.run(None, feed)
            items += batch
    return items, time.process_time() - cpu, time.monotonic() - begun


def cores() -> int:
    """Cores this process may use: its affinity, and the control group's quota rounded up."""
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else max(1, min(available, -(-int(quota) // int(period))))
