"""The model versions in the repository, measured again."""

import os
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from models.manifest import Manifest, check_files, read_golden, read_manifest
from training.architectures import build
from training.catalogue import version_folders
from training.data import AUTO_MPG, SOURCES, DataSet, cache_path, load
from training.evaluate import metrics_of, torch_answers
from training.quantise import MAX_ACCURACY_LOSS, MIN_SPEEDUP
from training.recipes import RECIPES, Recipe
from training.verify import answers_of

CHECKOUT = Path(__file__).parents[2]
MODELS = CHECKOUT / "models"
VERSIONS = [folder for folder in version_folders(MODELS) if not folder.parent.name.startswith("_")]
# Read here, before a fixture clears the environment for the test.
DATA_DIR = Path(os.environ.get("SHOAL_DATA_DIR") or CHECKOUT / "data")
REQUIRE_ALL = os.environ.get("SHOAL_REQUIRE_ALL") == "1"

each_version = pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: f"{path.parent.name}/{path.name}")


def session_of(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def is_quantised(manifest: Manifest) -> bool:
    assert manifest.provenance is not None
    return "quantised_from" in manifest.provenance.recipe


def data_of(manifest: Manifest) -> DataSet:
    """The real data set; skips where it is not there, unless nothing may be skipped."""
    assert manifest.dataset is not None
    source = SOURCES[manifest.dataset.name]
    if source != AUTO_MPG and not cache_path(source, DATA_DIR).exists() and not REQUIRE_ALL:
        pytest.skip(f"no {cache_path(source, DATA_DIR)}: set SHOAL_DATA_DIR, or train once to have it downloaded")
    return load(source, DATA_DIR)


def test_every_recipe_has_a_version_and_every_image_model_an_int8_one() -> None:
    assert {folder.parent.name for folder in VERSIONS} == set(RECIPES)
    quantised = {folder.parent.name for folder in VERSIONS if is_quantised(read_manifest(folder))}
    assert quantised == {"mnist", "fashion_mnist", "cifar10"}


def test_together_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 40e6


@each_version
def test_the_files_are_the_published_ones(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    assert {path.name for path in folder.iterdir()} == {*manifest.files, "manifest.json"}
    assert "report.html" in manifest.files
    assert (manifest.name, str(manifest.version)) == (folder.parent.name, folder.name)


@each_version
def test_the_manifest_promises_what_the_recipe_asks(folder: Path) -> None:
    manifest, recipe = read_manifest(folder), RECIPES[folder.parent.name]
    assert manifest.dataset is not None
    assert manifest.provenance is not None
    assert manifest.dataset.sha256 == SOURCES[recipe.dataset].sha256
    assert manifest.provenance.recipe["limit"] is None
    assert manifest.provenance.source not in ("", "unknown")
    assert "dirty" not in manifest.provenance.source
    if is_quantised(manifest):
        assert manifest.metrics["accuracy"] >= manifest.metrics["float_accuracy"] - MAX_ACCURACY_LOSS
        assert manifest.metrics["speedup"] >= MIN_SPEEDUP
    elif recipe.min_r2 is not None:
        assert manifest.metrics["r2"] >= recipe.min_r2
        assert manifest.metrics["closed_form_difference"] < 1e-3
    else:
        assert manifest.metrics["accuracy"] >= recipe.min_accuracy > 0.9


@each_version
def test_the_golden_rows_are_answered_within_tolerance(folder: Path) -> None:
    golden, tolerance, session = read_golden(folder), read_manifest(folder).tolerance, session_of(folder)
    for name, expected in golden.outputs.items():
        (found,) = session.run([name], dict(golden.inputs))
        assert (np.abs(found - expected) <= tolerance.absolute + tolerance.relative * np.abs(expected)).all(), name


@each_version
def test_the_checkpoint_is_the_model(folder: Path) -> None:
    manifest, golden = read_manifest(folder), read_golden(folder)
    assert manifest.provenance is not None
    if is_quantised(manifest):
        assert "checkpoint.pt" not in manifest.files
        return
    recipe = msgspec.convert(manifest.provenance.recipe, Recipe)
    (items,) = golden.inputs.values()
    targets = np.zeros(len(items), np.uint8 if manifest.classification else np.float32)
    rows = DataSet(SOURCES[recipe.dataset], items, targets, items, targets)
    model = build(recipe, rows)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True))
    for name, found in torch_answers(model.eval(), items).items():
        np.testing.assert_allclose(found, golden.outputs[name], atol=1e-4, rtol=1e-5)


@each_version
def test_no_file_names_a_folder(folder: Path) -> None:
    folders = [str(CHECKOUT), str(Path.home()), "site-packages", "/home"]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [name for name in folders if name.encode() in content], path.name


def test_the_samples_are_recognised() -> None:
    with np.load(CHECKOUT / "loadtests/samples/mnist.npz") as samples:
        assert samples["images"].shape == (1000, 28, 28, 1)
        for folder in [folder for folder in VERSIONS if folder.parent.name == "mnist"]:
            answers = answers_of(session_of(folder), samples["images"])
            assert (answers["logits"].argmax(axis=1) == samples["labels"]).mean() >= 0.99
            np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.data
@each_version
def test_the_figures_are_the_ones_promised_on_the_whole_test_set(folder: Path) -> None:
    manifest = read_manifest(folder)
    data = data_of(manifest)
    assert len(data.test_x) == (79 if data.source == AUTO_MPG else 10_000)
    found = metrics_of(answers_of(session_of(folder), data.test_x), data.source, data.test_y)
    ties = 2e-3 if is_quantised(manifest) else 2e-4  # another processor may round an int8 sum the other way
    for name in ("accuracy", "macro_f1", "r2"):
        if name in found:
            assert found[name] == pytest.approx(manifest.metrics[name], abs=ties), name
