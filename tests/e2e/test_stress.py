"""Ten thousand requests of mixed models, shapes, sizes and priorities over three frontends; every answer is checked.

An answer is compared with what its own input must give, so one that belongs to another request cannot pass.
"""

import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.build_any import build_any_repository
from tests.support.build_models import build_repository, quarters_of
from tests.support.server import Server, running_server
from tests.support.tensors import LENGTH, from_bytes, to_bytes

N_REQUESTS = 10_000
N_CLIENTS = 24
N_FRONTENDS = 3
MODELS = ("echo", "two", "wide", "scores", "picky")
ANY_MODELS = ("ragged", "pair", "matrix", "words", "outer")

Tensors = dict[str, tuple[str, np.ndarray]]
Check = Callable[[int, dict[str, np.ndarray]], None]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    plain = build_repository(tmp_path_factory.mktemp("plain"))
    various = build_any_repository(tmp_path_factory.mktemp("any"))
    for name in MODELS:
        (root / name).symlink_to(plain / name)
    for name in ANY_MODELS:
        (root / name).symlink_to(various / name)
    return root


def ask(connection: http.client.HTTPConnection, model: str, inputs: Tensors, priority: int) -> tuple[int, str, dict]:
    """Status, request id, outputs: all tensors binary."""
    given, blobs = [], []
    for name, (datatype, array) in inputs.items():
        blobs.append(to_bytes(array))
        parameters = {"binary_data_size": len(blobs[-1])}
        given.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": parameters})
    head = {"inputs": given, "parameters": {"binary_data_output": True, "priority": priority}}
    text = json.dumps(head).encode()
    connection.request("POST", f"/v2/models/{model}/infer", b"".join([text, *blobs]), {LENGTH: str(len(text))})
    answer = connection.getresponse()
    body = answer.read()
    request_id = answer.headers["x-request-id"]
    if answer.status != 200:
        return answer.status, request_id, {}
    length = int(answer.headers[LENGTH])
    outputs, rest = {}, body[length:]
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = from_bytes(output["datatype"], output["shape"], rest[:size])
        rest = rest[size:]
    return answer.status, request_id, outputs


def requests(seed: int) -> Iterator[tuple[str, Tensors, dict[str, np.ndarray] | int, int]]:
    """Model, inputs, what must come back (or the status), priority."""
    chosen = random.Random(seed)
    numbers = np.random.default_rng(seed)
    while True:
        priority = chosen.choice([0, 0, 0, 1, 2, 5, 254])
        n = chosen.choice([1, 1, 1, 2, 3, 7, 40])  # 40 are more than a batch
        length = chosen.choice([1, 2, 3, 5, 8])
        match chosen.choice([*MODELS, *ANY_MODELS]):
            case "echo":
                x = numbers.integers(0, 256, (n, 4)).astype(np.uint8)
                yield "echo", {"x": ("UINT8", x)}, {"same": x, "half": x.astype(np.float32) / 2}, priority
            case "two":
                a = numbers.integers(-99, 99, (n, 3)).astype(np.float32)
                b = numbers.integers(-99, 99, (n, 2)).astype(np.int32)
                total = a.sum(1) + b.sum(1).astype(np.float32)
                yield "two", {"a": ("FP32", a), "b": ("INT32", b)}, {"total": total, "negated": -b}, priority
            case "wide":
                x = numbers.integers(0, 2**63, (n, 2)).astype(np.uint64)
                yield "wide", {"x": ("UINT64", x)}, {"y": x}, priority
            case "scores":
                image = numbers.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8)
                yield "scores", {"image": ("UINT8", image)}, {"scores": quarters_of(image)}, priority
            case "picky":
                x = numbers.integers(0, 11, n).astype(np.int64)
                yield "picky", {"x": ("INT64", x)}, {"y": 11 * x} if x.max() <= 9 else 500, priority
            case "ragged":
                x = numbers.integers(-99, 99, (n, length)).astype(np.float32)
                yield "ragged", {"x": ("FP32", x)}, {"double": 2 * x, "total": x.sum(1)}, priority
            case "pair":
                a = numbers.integers(-99, 99, (n, length)).astype(np.int64)
                b = numbers.integers(-99, 99, (n, 2)).astype(np.int64)
                joined = np.concatenate([a, b], 1)
                yield "pair", {"a": ("INT64", a), "b": ("INT64", b)}, {"joined": joined}, priority
            case "outer":
                x = numbers.integers(-9, 9, (n, length)).astype(np.float32)
                yield "outer", {"x": ("FP32", x)}, {"y": x[:, :, None] * x[:, None, :]}, priority
            case "matrix":
                x = numbers.integers(1, 99, (n, length)).astype(np.float32)
                bias = np.array(chosen.randrange(9), np.float32)
                where = np.stack(np.nonzero(x)).astype(np.int64)
                inputs: Tensors = {"x": ("FP32", x), "bias": ("FP32", bias)}
                yield "matrix", inputs, {"turned": (x + bias).T, "where": where}, priority
            case "words":
                a, b = (
                    np.array([[f"{chosen.randrange(999)}" for _ in range(length)] for _ in range(n)], object)
                    for _ in "ab"
                )
                yield "words", {"a": ("BYTES", a), "b": ("BYTES", b)}, {"y": a + b}, priority


def client(server: Server, seed: int, count: int, seen: list[str], faults: list[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        for (model, inputs, expected, priority), _ in zip(requests(seed), range(count), strict=False):
            status, request_id, outputs = ask(connection, model, inputs, priority)
            seen.append(request_id)
            if isinstance(expected, int):
                if status != expected:
                    faults.append(f"{model}: {status} instead of {expected}")
            elif status != 200:
                faults.append(f"{model}: status {status}")
            elif outputs.keys() != expected.keys() or not all(
                outputs[name].shape == array.shape and (outputs[name] == array).all()
                for name, array in expected.items()
            ):
                faults.append(f"{model}: {inputs} gave {outputs}")
    except Exception as error:
        faults.append(repr(error))
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_ten_thousand_mixed_requests_over_several_frontends_each_get_their_own_answer(repository: Path) -> None:
    flags = ("--port", "0", "--engine.tune-budget-s", "0", "--frontends", str(N_FRONTENDS))
    # Room for the largest requests of all clients at one frontend: what is refused shows nothing here.
    room = (
        "--batching.max-queue-items",
        "8192",
        "--batching.max-row-bytes",
        "65536",
        "--batching.max-batch-size",
        "16",
    )
    with running_server(*flags, *room, "--repository", str(repository)) as server:
        seen: list[str] = []
        faults: list[str] = []
        threads = [
            threading.Thread(target=client, args=(server, seed, N_REQUESTS // N_CLIENTS + 1, seen, faults))
            for seed in range(N_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults[:3] == []
        assert len(set(seen)) == len(seen) >= N_REQUESTS
        assert len({request_id.split("-")[0] for request_id in seen}) == N_FRONTENDS, "not every frontend was asked"
        server.assert_settled()
        metrics = server.metrics()
        for model in ("echo", "ragged", "words"):
            assert metrics["shoal_batch_size_count", model] < metrics["shoal_batch_size_sum", model], "never a batch"
