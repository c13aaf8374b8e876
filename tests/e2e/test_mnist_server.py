"""The main job, end to end: the published model behind the real server answers a thousand real test images."""

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]
FLOAT = ROOT / "models/mnist/2"  # the version in float: an int8 one may round a sum otherwise in another batch
IN_FLIGHT = 100
FIRST_TEST_LABELS = {"mnist": "7", "fashion_mnist": "Ankle boot", "cifar10": "cat"}
JSON = {"content-type": "application/json"}
# Batches of other sizes sum in another order; a mixed-up row differs by tenths.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """The first 1,000 images of the MNIST test set, uint8 [1000, 28, 28, 1], and their labels."""
    with np.load(ROOT / "loadtests/samples/mnist.npz") as samples:
        return samples["images"], samples["labels"]


@pytest.fixture(scope="module")
def expected(images: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Probabilities [1000, 10] from onnxruntime itself."""
    return onnxruntime.InferenceSession(FLOAT / "model.onnx").run(["probabilities"], {"image": images[0]})[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    (repository / "mnist").mkdir()
    (repository / "mnist" / FLOAT.name).symlink_to(FLOAT)
    with running_server("--repository", str(repository), "--port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    with running_server("--repository", str(ROOT / "models"), "--port", "0") as server:
        yield server


async def send_all(server: Server, requests: list[dict]) -> list[httpx.Response]:
    """IN_FLIGHT at a time; the answers in the order of the requests."""
    answers: list[httpx.Response | None] = [None] * len(requests)
    left = iter(enumerate(requests))
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:

        async def work() -> None:
            for i, request in left:
                answers[i] = await client.post(**request)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return answers


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(file, "PNG")
    return file.getvalue()


async def test_a_thousand_real_images_at_once_each_get_their_own_answer(
    server: Server, images: tuple[np.ndarray, np.ndarray], expected: np.ndarray
) -> None:
    pixels, labels = images
    requests = [{"url": "/predict/mnist?top_k=10", "content": png(image)} for image in pixels]
    answers = await send_all(server, requests)
    assert [answer.status_code for answer in answers] == [200] * 1000
    right = 0
    for answer, label, row in zip(answers, labels, expected, strict=True):
        (prediction,) = answer.json()["predictions"]
        found = {int(entry["label"]): entry["probability"] for entry in prediction["top"]}
        assert [found[i] for i in range(10)] == pytest.approx(row, abs=TOLERANCE), "another image's answer"
        right += prediction["label"] == str(label)
    assert right >= 990
    assert max(batch_size(answer) for answer in answers) > 1, "nothing was batched"


async def test_every_way_to_send_an_image_gives_the_same_answer(
    server: Server, images: tuple[np.ndarray, np.ndarray], expected: np.ndarray
) -> None:
    chosen = range(0, 1000, 40)
    infer = "/v2/models/mnist/infer"
    json_infer = [
        {"inputs": [{"name": "image", "shape": [1, 28, 28, 1], "datatype": "UINT8", "data": images[0][i].tolist()}]}
        for i in chosen
    ]
    raw = {"content-type": "application/octet-stream"}
    ways = [
        [{"url": "/predict/mnist?top_k=10", "content": images[0][i].tobytes(), "headers": raw} for i in chosen],
        [{"url": "/predict/mnist?top_k=10", "json": {"instances": [images[0][i].tolist()]}} for i in chosen],
        [{"url": infer, "json": body} for body in json_infer],
        [{"url": infer, "content": images[0][i].tobytes(), "headers": raw} for i in chosen],
    ]
    for way in ways:
        for i, answer in zip(chosen, await send_all(server, way), strict=True):
            assert answer.status_code == 200, answer.text
            assert probabilities(answer) == pytest.approx(expected[i], abs=TOLERANCE)


def test_what_serve_prints_works(bundled: Server) -> None:
    """The curl line, word for word."""
    line = next(line for line in bundled.printed if "curl" in line)
    name, url = re.search(r"--data-binary @(\S+) (\S+)", line).groups()
    answer = httpx.post(url, content=Path(name).read_bytes())
    assert answer.json()["predictions"][0]["label"] == FIRST_TEST_LABELS[url.rpartition("/")[2]]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_every_bundled_image_model_names_its_example(bundled: Server, name: str) -> None:
    newest = max((ROOT / "models" / name).glob("*/"), key=lambda folder: int(folder.name))
    answer = httpx.post(f"{bundled.url}/predict/{name}", content=(newest / "example.png").read_bytes())
    assert answer.json()["version"] == newest.name
    assert answer.json()["predictions"][0]["label"] == FIRST_TEST_LABELS[name]


def test_the_bundled_regression_answers_with_its_golden_number(bundled: Server) -> None:
    folder = ROOT / "models/linear_regression/1"
    example = (folder / "example.json").read_bytes()
    answer = httpx.post(f"{bundled.url}/predict/linear_regression", content=example, headers=JSON)
    assert answer.status_code == 200, answer.text
    (expected,) = onnxruntime.InferenceSession(folder / "model.onnx").run(
        None, {"features": np.array(json.loads(example)["instances"], np.float32)}
    )
    assert answer.json()["predictions"][0]["prediction"] == pytest.approx(expected[0].tolist(), rel=1e-6)


def probabilities(answer: httpx.Response) -> list[float]:
    if answer.headers["content-type"] == "application/octet-stream":
        return np.frombuffer(answer.content[-40:], "<f4").tolist()  # the last of the two outputs
    body = answer.json()
    if "outputs" in body:
        return next(output["data"] for output in body["outputs"] if output["name"] == "probabilities")
    found = {int(entry["label"]): entry["probability"] for entry in body["predictions"][0]["top"]}
    return [found[i] for i in range(10)]


def batch_size(answer: httpx.Response) -> int:
    return int(re.search(r'batch;desc="(\d+)"', answer.headers["server-timing"]).group(1))
