"""The model repository as clients see it: bad versions are refused with the reason and keep no other from serving."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import httpx
import numpy as np
import onnx
import pytest

from models.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    Classification,
    Golden,
    ImageInput,
    TensorInput,
    TensorSpec,
    digest_file,
    write_golden,
)
from tests.http.conftest import FAST_START, Serve
from tests.support.build_models import (
    QUARTERS,
    Graph,
    change_manifest,
    plain_graphs,
    publish,
    publish_scores,
    quarter_sums,
    quarters_of,
    write_model,
)
from tests.support.server import Server, running_server, starting_server

# Why each is refused: words that the reason must hold.
REFUSED = MappingProxyType(
    {
        "no-onnx": ["model.onnx"],
        "empty-file": ["model.onnx"],
        "no-file": ["model.onnx", "missing"],
        "tampered": ["model.onnx", "manifest.json lists", "manifest"],
        "lost-file": ["history.json", "is listed in manifest.json, but missing"],
        "drifted": ["golden rows", "'scores'", "tolerance"],
        "drifted-nan": ["golden rows", "'scores'"],
        "broken-golden": ["golden.npz"],
        "broken-manifest": ["manifest.json"],
        "unknown-field": ["manifest.json", "colour"],
        "other-signature": ["manifest.json", "outputs"],
        "other-image": ["manifest.json", "image"],
        "other-labels": ["manifest.json", "classification", "'scores'"],
        "image-without-batch": ["manifest.json", "first dimension"],
        "fails-on-golden": ["golden rows"],
        "many-axes": ["'x'", "17 axes", "16"],
        "sequence": ["'x'", "seq(tensor(float))", "tensor(float)"],
    }
)


def build_bad_models(root: Path) -> None:
    (root / "no-onnx/1").mkdir(parents=True)
    (root / "no-onnx/1" / MODEL_FILE).write_bytes(b"this is no model")
    (root / "empty-file/1").mkdir(parents=True)
    (root / "empty-file/1" / MODEL_FILE).write_bytes(b"")
    (root / "no-file/1").mkdir(parents=True)

    with (publish_scores(root, "tampered") / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    lost = publish_scores(root, "lost-file")
    change_manifest(lost, files={"history.json": digest_file(lost / MODEL_FILE)})

    images = np.ones((2, 28, 28, 1), np.uint8)
    for name, offset in (("drifted", 100.0), ("drifted-nan", np.nan)):
        replace_golden(publish_scores(root, name), images, {"scores": quarters_of(images) + np.float32(offset)})
    broken = publish_scores(root, "broken-golden")
    (broken / GOLDEN_FILE).write_bytes(b"PK\x03\x04 no archive")
    update_digests(broken)

    (publish_scores(root, "broken-manifest") / "manifest.json").write_text("{")
    manifest = publish_scores(root, "unknown-field") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema"', '"colour": 1, "schema"', 1))
    signature = (TensorSpec("scores", "FP32", (-1, 5)),)
    change_manifest(publish_scores(root, "other-signature"), outputs=signature)
    change_manifest(publish_scores(root, "other-image"), input=ImageInput(32, 32, 1))
    labels = Classification("scores", QUARTERS[:3])
    change_manifest(publish_scores(root, "other-labels"), classification=labels)

    fixed = publish_scores(root, "image-without-batch")
    spec = (TensorSpec("image", "UINT8", (1, 28, 28, 1)),), (TensorSpec("scores", "FP32", (1, 4)),)
    change_manifest(fixed, inputs=spec[0], outputs=spec[1])
    set_batch(fixed / MODEL_FILE, 1)
    update_digests(fixed)
    picky = plain_graphs()["picky"]
    fails = write_model(root, "fails-on-golden", picky)
    write_golden(fails, Golden({"x": np.array([3, 12])}, {"y": np.array([33, 132])}))
    publish(fails, picky, TensorInput())
    write_model(root, "many-axes", plain_graphs()["floats"])
    set_shape(root / "many-axes" / "1" / MODEL_FILE, ["n"] + [1] * 16)
    write_sequence(root / "sequence" / "1")


def replace_golden(folder: Path, images: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
    write_golden(folder, Golden({"image": images}, outputs))
    update_digests(folder)


def golden(inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        folder = publish_scores(root, "odd")
        write_golden(folder, Golden(inputs, outputs))
        update_digests(folder)

    return build


IMAGES = np.ones((2, 28, 28, 1), np.uint8)
ODD = {
    "golden rows without an output": golden({"image": IMAGES}, {"other": quarters_of(IMAGES)}),
    "golden rows without an input": golden({"other": IMAGES}, {"scores": quarters_of(IMAGES)}),
    "golden rows of nothing": golden({}, {}),
    "golden rows without inputs": golden({}, {"scores": quarters_of(IMAGES)}),
    "no golden rows": golden({"image": IMAGES[:0]}, {"scores": quarters_of(IMAGES[:0])}),
    "golden rows of another shape": golden({"image": IMAGES[..., 0]}, {"scores": quarters_of(IMAGES)}),
    "golden rows of another datatype": golden({"image": IMAGES.astype(np.float32)}, {"scores": quarters_of(IMAGES)}),
    "golden rows that are text": golden({"image": IMAGES}, {"scores": np.array([["a"] * 4] * 2)}),
}


def update_digests(folder: Path) -> None:
    change_manifest(folder, files={name: digest_file(folder / name) for name in (MODEL_FILE, GOLDEN_FILE)})


def set_batch(path: Path, size: int) -> None:
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(model, path)


def write_sequence(folder: Path) -> None:
    """x, a sequence of tensors: y = the first."""
    x = onnx.helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])
    zero = onnx.numpy_helper.from_array(np.array(0), "zero")
    graph = onnx.helper.make_graph([onnx.helper.make_node("SequenceAt", ["x", "zero"], ["y"])], "s", [x], [y], [zero])
    folder.mkdir(parents=True)
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / MODEL_FILE)


def set_shape(path: Path, shape: list[int | str]) -> None:
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Good and bad models side by side."""
    root = tmp_path_factory.mktemp("mixed")
    build_bad_models(root)
    publish_scores(root)
    for version in (1, 2, 10):
        factor = np.array(0.5 * version, np.float32)
        echo = plain_graphs()["echo"]
        write_model(root, "versions", Graph(echo.inputs, echo.outputs, echo.nodes, {"0.5": factor}), version)
    for name in ("latest", "0", "-3", "1.5"):
        (root / "versions" / name).mkdir()
    (root / "no-versions" / "README").mkdir(parents=True)
    (root / "a file").write_text("not a model")
    with running_server(*FAST_START, "--repository", str(root)) as server:
        yield server


@pytest.fixture(scope="module")
def client(mixed: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mixed.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_version_is_refused_with_the_reason_on_every_route(client: httpx.Client, name: str) -> None:
    for method, path in (
        ("GET", f"/v2/models/{name}"),
        ("GET", f"/v2/models/{name}/ready"),
        ("GET", f"/v2/models/{name}/versions/1"),
        ("GET", f"/v2/models/{name}/versions/1/ready"),
        ("POST", f"/v2/models/{name}/infer"),
        ("POST", f"/predict/{name}"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 503, answer.text
        message = answer.json()["error"]
        for words in [f"{name!r} version 1", *REFUSED[name]]:
            assert words in message
        assert "\n" not in message


def test_bad_versions_keep_no_other_from_serving(client: httpx.Client) -> None:
    assert client.get("/v2/models").json() == {"models": ["scores", "versions"]}
    assert client.get("/health/ready").status_code == 200
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1), np.uint8)
    top = client.post("/predict/scores", content=image.tobytes()).json()["predictions"][0]["top"]
    by_label = {entry["label"]: entry["probability"] for entry in top}
    assert [by_label[label] for label in QUARTERS] == quarters_of(image)[0].tolist()


def test_refused_versions_are_printed_and_logged(mixed: Server) -> None:
    printed = "\n".join(mixed.printed)
    for name in REFUSED:
        assert f"refused   {name} version 1: " in printed
        assert f"model {name} version 1 is not served: " in mixed.log()


def test_the_highest_version_answers_and_is_named(client: httpx.Client) -> None:
    for path in ("/v2/models/versions/infer", "/v2/models/versions/versions/10/infer"):
        inputs = [{"name": "x", "shape": [1, 4], "datatype": "UINT8", "data": [1, 2, 3, 4]}]
        answer = client.post(path, json={"inputs": inputs, "outputs": [{"name": "half"}]}).json()
        assert answer["model_version"] == "10"
        assert answer["outputs"][0]["data"] == [5, 10, 15, 20]
    assert client.get("/v2/models/versions").json()["versions"] == ["10"]


@pytest.mark.parametrize("version", ["1", "0", "latest", "-3", "11"])
def test_versions_that_are_not_served_are_404(client: httpx.Client, version: str) -> None:
    answer = client.get(f"/v2/models/versions/versions/{version}")
    assert answer.status_code == 404
    assert answer.json()["error"].endswith("ready: 10")


@pytest.mark.parametrize("name", ["no-versions", "a file", "a%20file"])
def test_what_is_no_model_is_404(client: httpx.Client, name: str) -> None:
    assert client.get(f"/v2/models/{name}").status_code == 404


def test_a_version_other_than_the_refused_one_is_404(client: httpx.Client) -> None:
    assert client.get("/v2/models/drifted/versions/7").status_code == 404


@pytest.mark.parametrize("name", ODD)
def test_a_version_that_is_wrong_in_an_unusual_way_does_not_end_the_server(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    ODD[name](tmp_path)
    publish_scores(tmp_path)
    server = serve(models=tmp_path)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/v2/models").json() == {"models": ["scores"]}
        answer = client.get("/v2/models/odd")
        assert answer.status_code == 503
        assert "'odd' version 1" in answer.json()["error"]


def test_a_model_whose_items_have_no_elements_is_never_our_fault(serve: Serve, tmp_path: Path) -> None:
    write_model(tmp_path, "hollow", plain_graphs()["floats"])
    set_shape(tmp_path / "hollow" / "1" / MODEL_FILE, ["n", 0])
    server = serve(models=tmp_path)
    inputs = [{"name": "x", "shape": [2, 0], "datatype": "FP32", "data": []}]
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        octets = {"content-type": "application/octet-stream"}
        for answer in (
            client.post("/v2/models/hollow/infer", json={"inputs": inputs}),
            client.post("/predict/hollow", json={"instances": [[], []]}),
            client.post("/v2/models/hollow/infer", content=b"", headers=octets),
            client.post("/predict/hollow", content=b"1234", headers=octets),
        ):
            assert answer.status_code in (200, 400, 503), answer.text


def test_a_repository_that_does_not_exist_ends_the_start(tmp_path: Path) -> None:
    with starting_server(*FAST_START, "--repository", str(tmp_path / "nowhere")) as (server, _):
        assert server.wait() == 1
        assert str(tmp_path / "nowhere") in server.log()
        assert "--repository" in server.log()
        assert "Traceback" not in server.log()


def test_without_any_model_the_server_is_live_and_not_ready(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "nothing here"
    root.mkdir()
    server = serve(models=root)
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/health/live").json() == {"live": True}
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert "the repository holds no model" in answer.json()["error"]
        assert client.get("/v2/models").json() == {"models": []}
        assert client.get("/metrics").status_code == 200
        answer = client.post("/predict/any")
        assert (answer.status_code, answer.json()) == (404, {"error": "no model 'any'; ready: none"})
    assert str(root) in "\n".join(server.printed)


def test_where_every_model_is_refused_ready_says_so(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "bad/1").mkdir(parents=True)
    server = serve(models=tmp_path)
    answer = httpx.get(f"{server.url}/health/ready", trust_env=False)
    assert (answer.status_code, answer.json()["error"]) == (503, "no model could be loaded")


def test_the_graph_of_the_published_model_is_the_one_that_is_tested() -> None:
    assert [spec.shape for spec in (*quarter_sums().inputs, *quarter_sums().outputs)] == [(-1, 28, 28, 1), (-1, 4)]
