"""Runs in a client's own environment: the cases of one script, and what they compare with.

Every case gets the server's address, makes a client of its own, and raises where an answer is not what was expected.
"""

import asyncio
import contextlib
import faulthandler
import inspect
import io
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

SPELT = "simple é+50% #1?"  # a model whose name has to be percent-encoded in a path
SPELT_VERSION = "3"
LABELS = ("cat", "dog", "fish")
WORDS = np.array([["", "a", "zwölf", "数", "two\nlines", '"quoted"', "\N{SNOWMAN}" * 300, "0"]], dtype=np.object_)
_GIVE_UP_SECONDS = 80  # of the script: below the time its test waits

Array = np.ndarray[Any, Any]


def main(names: dict[str, Any]) -> None:
    """Print {case: what differed} as the last line; `names` are the script's globals."""
    faulthandler.dump_traceback_later(_GIVE_UP_SECONDS, exit=True)
    cases = {name.removeprefix("case_"): case for name, case in names.items() if name.startswith("case_")}
    print(json.dumps({name: _difference(case, sys.argv[1]) for name, case in cases.items()}))


def _difference(case: Callable[[str], Any], address: str) -> str:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            done = case(address)
            if inspect.isawaitable(done):
                asyncio.run(_whole(done))
    except Exception:  # whatever a case raises is what differed
        return traceback.format_exc()
    return ""


async def _whole(done: Any) -> None:
    await done


def pair(n: int = 1, seed: int = 0) -> tuple[Array, Array]:
    """Two INT32 [n, 16] that differ in every element from those of another seed."""
    first = np.arange(16 * n, dtype=np.int32).reshape(n, 16) + 1_000_000 * seed
    return first, np.full((n, 16), seed + 1, np.int32)


def as_text(numbers: Array) -> Array:
    """The elements in decimal, as the objects that clients take for BYTES."""
    return np.array([str(number) for number in numbers.ravel()], dtype=np.object_).reshape(numbers.shape)


def as_numbers(text: Array) -> Array:
    """What `simple_string` answers, as INT32; its elements arrive as bytes or, from JSON, as str."""
    return np.array([int(element) for element in text.ravel()], dtype=np.int32).reshape(text.shape)


def as_words(text: Array) -> list[str]:
    return [element.decode() if isinstance(element, bytes) else str(element) for element in text.ravel()]


def classes(array: Array, k: int, labels: tuple[str, ...] = ()) -> list[str]:
    """The k largest of each row of [n, classes], as the classification extension writes them."""
    best = np.argsort(-array, axis=1, kind="stable")[:, :k]
    return [
        ":".join([f"{row[index]:f}" if array.dtype.kind == "f" else str(row[index]), str(index), *labels[index:][:1]])
        for row, order in zip(array, best, strict=True)
        for index in order.tolist()
    ]


def expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{what} is {found!r}; expected {expected!r}")


def expect_array(found: Any, expected: Array, what: str) -> None:
    """Bit for bit, with datatype and shape."""
    if found is None:
        raise AssertionError(f"{what} is missing")
    expect(found.shape, expected.shape, f"the shape of {what}")
    expect(found.dtype, expected.dtype, f"the datatype of {what}")
    if found.tobytes() != expected.tobytes():
        raise AssertionError(f"{what} is {found.tolist()}; expected {expected.tolist()}")


def expect_pair(first: Array, second: Array, answered_sum: Any, answered_difference: Any) -> None:
    expect_array(answered_sum, first + second, "OUTPUT0")
    expect_array(answered_difference, first - second, "OUTPUT1")


def expect_words(found: str, words: list[str], what: str) -> None:
    for word in words:
        if word not in found:
            raise AssertionError(f"{what} is {found!r}; expected {word!r} in it")
