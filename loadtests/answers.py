"""Real images, the ways to ask for their labels, and whether an answer is right: everything of a load test but locust.

    Samples   1,000 images of the MNIST test set with their labels, and their PNG and JSON encodings, made once
    write_*   some of them -> a request body          read_*   the response body -> one `Answer` for each, in order
    Ledger    checks every answer twice: against the image's label (counted: a good model errs now and then) and against
              what the same image was answered before (a fault: rows were mixed up, or a model changed under load)
    Tally     times and failures by kind of request, in bounded memory

Kept apart from locustfile.py because importing locust patches the whole process for gevent.
Checked by tests/unit/test_loadtests.py.
"""

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from PIL import Image

SAMPLES_FILE = Path(__file__).parent / "samples" / "mnist.npz"
MODEL = "mnist"
MIN_ACCURACY = 0.99

# The same image in another batch size runs other kernels: its probability may differ in the last digits, not more.
SAME_PROBABILITY = 1e-3
_MESSAGES = 8
_INPUT = "image"
_OUTPUT = "probabilities"


class Samples(Struct, frozen=True):
    """images uint8[N, 28, 28, 1] · labels uint8[N] · png and json: one encoding for each image"""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    png: list[bytes]
    json: list[bytes]


class Answer(Struct, frozen=True):
    label: int
    probability: float


def load_samples(path: Path = SAMPLES_FILE) -> Samples:
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    return Samples(images, labels, [_png(image) for image in images], [_json(image) for image in images])


def write_png(samples: Samples, indices: Sequence[int]) -> bytes:
    (index,) = indices
    return samples.png[index]


def write_json(samples: Samples, indices: Sequence[int]) -> bytes:
    return b'{"instances": [' + b",".join(samples.json[i] for i in indices) + b"]}"


def write_raw(samples: Samples, indices: Sequence[int]) -> bytes:
    return b"".join(samples.images[i].tobytes() for i in indices)


def write_infer_json(samples: Samples, indices: Sequence[int]) -> bytes:
    shape = json.dumps([len(indices), *samples.images.shape[1:]]).encode()
    data = b",".join(samples.json[i] for i in indices)
    return b'{"inputs": [{"name": "%s", "datatype": "UINT8", "shape": %s, "data": [%s]}], %s}' % (
        _INPUT.encode(),
        shape,
        data,
        b'"outputs": [{"name": "%s"}]' % _OUTPUT.encode(),
    )


def read_predictions(body: bytes, _header_length: str | None) -> list[Answer]:
    """The answers of /predict."""
    return [Answer(int(item["label"]), item["probability"]) for item in msgspec.json.decode(body)["predictions"]]


def read_infer(body: bytes, header_length: str | None) -> list[Answer]:
    """The answers of /v2/models/<model>/infer, as JSON or, when there is a header length, binary."""
    head = msgspec.json.decode(body[: int(header_length)] if header_length else body)
    at = int(header_length or 0)
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == _OUTPUT:
            values = np.frombuffer(body[at : at + size], "<f4") if size else np.array(output["data"])
            return [Answer(int(row.argmax()), float(row.max())) for row in values.reshape(output["shape"])]
        at += size
    raise ValueError(f"no output {_OUTPUT!r}")


class Ledger:
    """What every image was answered first, and how many answers were right."""

    def __init__(self, labels: npt.NDArray[np.uint8]) -> None:
        self._labels: list[int] = labels.tolist()
        self._first: dict[int, Answer] = {}
        self.items = 0
        self.right = 0

    @property
    def misclassified(self) -> int:
        return self.items - self.right

    @property
    def accuracy(self) -> float:
        return self.right / self.items if self.items else 0.0

    def enter(self, indices: Sequence[int], answers: Sequence[Answer]) -> str | None:
        """Count the answers to these images; what is wrong with them, if anything."""
        if len(indices) != len(answers):
            return f"{len(answers)} answers for {len(indices)} items"
        fault = None
        for index, answer in zip(indices, answers, strict=True):
            self.items += 1
            self.right += answer.label == self._labels[index]
            first = self._first.setdefault(index, answer)
            if not _same(first, answer):
                fault = "changed answer: the same image was answered otherwise before"
        return fault


class Kind:
    """One kind of request: its times in milliseconds, to three digits, and its failures by message."""

    def __init__(self) -> None:
        self.times: Counter[float] = Counter()
        self.failures: Counter[str] = Counter()


class Tally:
    def __init__(self) -> None:
        self.kinds: defaultdict[str, Kind] = defaultdict(Kind)

    def enter(self, name: str, milliseconds: float, failure: str | None) -> None:
        self.kinds[name].times[_three_digits(milliseconds)] += 1
        if failure is not None:
            self.kinds[name].failures[failure] += 1

    @property
    def requests(self) -> int:
        return sum(kind.times.total() for kind in self.kinds.values())

    @property
    def failed(self) -> int:
        return sum(kind.failures.total() for kind in self.kinds.values())


def faults(tally: Tally, ledger: Ledger) -> list[str]:
    """Why the run counts as failed, one line each; none when it is good."""
    found = []
    if not tally.requests:
        found.append("nothing was answered")
    if tally.failed:
        found.append(f"{tally.failed:,} of {tally.requests:,} requests failed")
    if ledger.items and ledger.accuracy < MIN_ACCURACY:
        found.append(f"accuracy {ledger.accuracy:.2%}; expected at least {MIN_ACCURACY:.0%}")
    return found


def summary(tally: Tally, ledger: Ledger, seconds: float, client_cpu: float) -> str:
    """What is printed at the end. `client_cpu` is the share of one core that the load generator used."""
    lines = [f"{'request':<28}{'count':>9}{'/s':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'failed':>8}"]
    times: Counter[float] = Counter()
    failures: Counter[str] = Counter()
    for name, kind in sorted(tally.kinds.items()):
        lines.append(_row(name, kind.times, kind.failures.total(), seconds))
        times.update(kind.times)
        failures.update(kind.failures)
    lines += [_row("all", times, failures.total(), seconds), ""]
    lines += [f"failed    {count:,} x {message}" for message, count in failures.most_common(_MESSAGES)]
    lines.append(
        f"answers   {ledger.items:,} images, {ledger.misclassified:,} misclassified: accuracy {ledger.accuracy:.2%}"
    )
    lines.append(f"client    {client_cpu:.0%} of a core" + (_CLIENT_IS_THE_LIMIT if client_cpu > 0.85 else ""))
    found = faults(tally, ledger)
    lines.append("result    " + ("FAILED: " + "; ".join(found) if found else "passed"))
    return "\n".join(lines)


_CLIENT_IS_THE_LIMIT = ": locust is the limit, rates and times are its own; `make bench` measures the server"


def percentile(times: Counter[float], share: float) -> float:
    """The smallest time that at least `share` of all do not exceed."""
    left = math.ceil(share * times.total())
    for value in sorted(times):
        left -= times[value]
        if left <= 0:
            return value
    return math.nan


def _row(name: str, times: Counter[float], failed: int, seconds: float) -> str:
    count = times.total()
    p50, p95, p99 = (percentile(times, share) for share in (0.5, 0.95, 0.99))
    return f"{name:<28}{count:>9,}{count / seconds:>8,.0f}{p50:>9.4g}{p95:>9.4g}{p99:>9.4g}{failed:>8,}"


def _same(first: Answer, answer: Answer) -> bool:
    return first.label == answer.label and abs(first.probability - answer.probability) <= SAME_PROBABILITY


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(buffer, "png")
    return buffer.getvalue()


def _json(image: npt.NDArray[Any]) -> bytes:  # Any: numpy gives what it holds
    return msgspec.json.encode(image.tolist())
