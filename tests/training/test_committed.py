"""The model versions in the repository, measured again."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.manifest import check_files, read_golden, read_manifest
from training.architectures import build
from training.data import MNIST, cache_path, load
from training.evaluate import metrics_of
from training.recipes import MNIST_RECIPE
from training.verify import answer

CHECKOUT = Path(__file__).parents[2]
VERSION = CHECKOUT / "models/mnist/1"
# Read here, before a fixture clears the environment for the test.
DATA_DIR = Path(os.environ.get("SHOAL_DATA_DIR") or CHECKOUT / "data")
REQUIRE_ALL = os.environ.get("SHOAL_REQUIRE_ALL") == "1"


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(VERSION / "model.onnx", providers=["CPUExecutionProvider"])


def test_the_files_are_the_published_ones() -> None:
    check_files(VERSION, read_manifest(VERSION))


def test_the_manifest_promises_what_the_recipe_asks() -> None:
    manifest = read_manifest(VERSION)
    assert manifest.metrics["accuracy"] >= MNIST_RECIPE.min_accuracy
    assert manifest.dataset is not None
    assert (manifest.dataset.sha256, manifest.dataset.train_items) == (MNIST.sha256, 60_000)


def test_the_golden_rows_are_answered_within_tolerance(session: onnxruntime.InferenceSession) -> None:
    golden, tolerance = read_golden(VERSION), read_manifest(VERSION).tolerance
    for name, expected in golden.outputs.items():
        (found,) = session.run([name], dict(golden.inputs))
        assert (np.abs(found - expected) <= tolerance.absolute + tolerance.relative * np.abs(expected)).all(), name


def test_the_samples_are_recognised(session: onnxruntime.InferenceSession) -> None:
    with np.load(CHECKOUT / "loadtests/samples/mnist.npz") as samples:
        assert samples["images"].shape == (1000, 28, 28, 1)
        logits, probabilities = answer(session, samples["images"])
        assert metrics_of(logits, samples["labels"])["accuracy"] >= 0.99
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_the_checkpoint_is_the_model() -> None:
    model = build(MNIST_RECIPE)
    model.load_state_dict(torch.load(VERSION / "checkpoint.pt", weights_only=True))
    golden = read_golden(VERSION)
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(golden.inputs["image"]))[0].numpy()
    np.testing.assert_allclose(logits, golden.outputs["logits"], atol=1e-4)


def test_no_file_names_a_folder() -> None:
    folders = [str(CHECKOUT), str(Path.home()), "site-packages", "/home"]
    for path in VERSION.iterdir():
        content = path.read_bytes()
        assert not [folder for folder in folders if folder.encode() in content], path.name


@pytest.mark.data
def test_the_accuracy_is_the_one_promised(session: onnxruntime.InferenceSession) -> None:
    if not cache_path(MNIST, DATA_DIR).exists() and not REQUIRE_ALL:
        pytest.skip(
            f"no {cache_path(MNIST, DATA_DIR)}: set SHOAL_DATA_DIR, or let `python -m training samples` download it"
        )
    data = load(MNIST, DATA_DIR)
    logits, _ = answer(session, data.test_x)
    accuracy = metrics_of(logits, data.test_y)["accuracy"]
    assert accuracy >= 0.996
    assert accuracy == pytest.approx(read_manifest(VERSION).metrics["accuracy"], abs=2e-4)  # two ties decided otherwise
