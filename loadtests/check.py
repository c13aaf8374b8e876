"""Before anything is measured: are a server's answers those of bare onnxruntime on the same file?

The rows are sent sixteen at a time, so that they meet in batches: a row that gets its neighbour's answer is found.
"""

import http.client
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from loadtests.bare import Array
from loadtests.server import BenchError
from loadtests.sides import CONTENT_TYPE, Side

ANSWERS = 50
ABSOLUTE, RELATIVE = 1e-4, 1e-3  # batches of other sizes run other kernels; a wrong row differs by far more
_AT_ONCE = 16
_ANSWER_S = 30.0


def check(side: Side, port: int, rows: Array, expected: Mapping[str, Array]) -> int:
    """How many answers were compared. Raises BenchError at the first that differs from `expected`, output by output."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda row: _ask(side, port, row), rows[:ANSWERS]))
    for i, (status, answer) in enumerate(answers):
        if status != 200:
            raise BenchError(f"answer {i} has status {status}: {answer[:300].decode(errors='replace')}")
        if fault := disagreement(side, answer, _row(expected, i)):
            raise BenchError(f"answer {i} is not bare onnxruntime's: {fault}")
    return len(answers)


def answers_rightly(side: Side, port: int, row: Array, expected: Mapping[str, Array]) -> bool:
    """Whether it answers at all yet. Raises BenchError where it answers wrongly. `row` is the first."""
    try:
        status, answer = _ask(side, port, row)
    except (OSError, http.client.HTTPException):
        return False
    if status != 200:
        return False
    if fault := disagreement(side, answer, _row(expected, 0)):
        raise BenchError(f"the first answer is not bare onnxruntime's: {fault}")
    return True


def disagreement(side: Side, answer: bytes, expected: Mapping[str, Array]) -> str | None:
    """What differs between an answer's outputs and the outputs for its row, if anything."""
    try:
        given = side.read(answer, expected)
    except (ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error} in {answer[:200]!r}"
    for name, values in given.items():
        wanted = expected[name].astype(np.float64).ravel()
        if values.shape != wanted.shape:
            return f"{name} has {values.size} values; expected {wanted.size}"
        difference = np.abs(values.astype(np.float64) - wanted)
        if not (difference <= ABSOLUTE + RELATIVE * np.abs(wanted)).all():
            return f"{name} differs by up to {difference.max():.3g}"
    return None


def _row(expected: Mapping[str, Array], i: int) -> dict[str, Array]:
    return {name: array[i] for name, array in expected.items()}


def _ask(side: Side, port: int, row: Array) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    try:
        connection.request("POST", side.checked_path, side.write(row), {"Content-Type": CONTENT_TYPE[side.body]})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
