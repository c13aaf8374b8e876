import json
import subprocess
import typing
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import training.publish
from models.manifest import EXAMPLE_FILE, check_files, read_golden, read_manifest
from training.architectures import build
from training.data import DataSet
from training.errors import VersionExists, VersionUnknown
from training.export import Exported
from training.loop import Trained
from training.publish import Origin, choose_version, commit, highest_version, origin_of, publish
from training.recipes import Recipe, as_scalars
from training.verify import Verified


@pytest.fixture(scope="module")
def origin(trained: Trained, recipe: Recipe) -> Origin:
    return origin_of(trained, as_scalars(recipe), {"0": 0.5, "1": 0.7})


@pytest.fixture
def published(verified: Verified, origin: Origin, data: DataSet, tmp_path: Path) -> Path:
    return publish(verified, origin, data, "Tiny digits.", "tiny", tmp_path / "models", 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_is_whole_and_nothing_is_left_beside_it(published: Path) -> None:
    assert [path.name for path in published.parent.iterdir()] == ["1"]
    listed = {"model.onnx", "checkpoint.pt", "history.json", "golden.npz", "example.png", "report.html"}
    assert {path.name for path in published.iterdir()} == listed | {"manifest.json"}
    manifest = read_manifest(published)
    assert set(manifest.files) == listed
    check_files(published, manifest)


def test_the_manifest_says_what_was_made(published: Path, verified: Verified, recipe: Recipe, data: DataSet) -> None:
    manifest = read_manifest(published)
    assert (manifest.name, manifest.version) == ("tiny", 1)
    assert manifest.inputs[0].shape == (-1, 28, 28, 1)
    assert [output.name for output in manifest.outputs] == ["logits", "probabilities"]
    assert manifest.classification is not None
    assert manifest.classification.labels == tuple("0123456789")
    assert manifest.verification == verified.verification
    assert manifest.metrics == verified.verification.metrics
    assert manifest.dataset is not None
    assert (manifest.dataset.sha256, manifest.dataset.train_items) == (data.source.sha256, 300)
    assert manifest.provenance is not None
    assert manifest.provenance.recipe["epochs"] == recipe.epochs
    assert manifest.provenance.seeds == {"0": 0.5, "1": 0.7}
    assert manifest.provenance.packages["torch"] == torch.__version__


def test_the_golden_rows_are_answered_by_the_file(published: Path) -> None:
    golden, tolerance = read_golden(published), read_manifest(published).tolerance
    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    for name, expected in golden.outputs.items():
        (found,) = session.run([name], dict(golden.inputs))
        assert (np.abs(found - expected) <= tolerance.absolute + tolerance.relative * np.abs(expected)).all()


def test_the_checkpoint_is_plain_weights_and_gives_the_same_logits(
    published: Path, recipe: Recipe, data: DataSet
) -> None:
    model = build(recipe, data)
    model.load_state_dict(torch.load(published / "checkpoint.pt", weights_only=True))
    images = read_golden(published).inputs["image"]
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(images))[0].numpy()
    session = onnxruntime.InferenceSession(published / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"image": images})[0], logits, atol=1e-5)


def test_the_history_has_one_entry_per_epoch(published: Path, recipe: Recipe) -> None:
    history = json.loads((published / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(1, recipe.epochs + 1))
    assert {"loss", "accuracy", "learning_rate", "items_per_s"} <= set(history[0])


def test_no_file_names_a_folder_of_this_machine(published: Path, tmp_path: Path) -> None:
    folders = [str(Path(__file__).parents[2]), str(Path.home()), str(tmp_path), "site-packages", "/home"]
    for name, content in contents(published).items():
        assert not [folder for folder in folders if folder.encode() in content], name


def test_others_may_read_what_was_published(published: Path) -> None:
    assert published.stat().st_mode & 0o055 == 0o055


def test_an_existing_version_is_never_touched(
    published: Path, verified: Verified, origin: Origin, data: DataSet
) -> None:
    before = contents(published.parent)
    with pytest.raises(VersionExists, match="a published version never changes"):
        publish(verified, origin, data, "Other.", "tiny", published.parents[1], 1)
    assert contents(published.parent) == before


def test_a_version_that_appears_meanwhile_is_not_overwritten(
    published: Path,
    verified: Verified,
    origin: Origin,
    data: DataSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.publish, "refuse_existing", lambda target: None)
    before = contents(published.parent)
    with pytest.raises(VersionExists, match="appeared while"):
        publish(verified, origin, data, "Other.", "tiny", published.parents[1], 1)
    assert contents(published.parent) == before


def test_a_failure_half_way_leaves_nothing(
    verified: Verified, origin: Origin, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(training.publish, "write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        publish(verified, origin, data, "Tiny.", "tiny", tmp_path, 1)
    assert contents(tmp_path) == {}
    assert list((tmp_path / "tiny").iterdir()) == []


def test_an_unverified_graph_is_not_published(
    exported: Exported, origin: Origin, data: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="bug: only what verify"):
        publish(exported, origin, data, "Tiny.", "tiny", tmp_path, 1)  # type: ignore[arg-type]  # what is tested
    assert list(tmp_path.iterdir()) == []
    assert typing.get_type_hints(publish)["verified"] is Verified


def test_the_next_version_is_one_more_than_the_highest(tmp_path: Path) -> None:
    assert choose_version(tmp_path, "tiny", None) == 1
    for name in ("1", "9", "10", "notes", ".11-abcd"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
    assert choose_version(tmp_path, "tiny", None) == 11
    assert choose_version(tmp_path, "tiny", 3) == 3
    assert highest_version(tmp_path, "tiny") == 10
    with pytest.raises(VersionExists, match="Leave --version out"):
        choose_version(tmp_path, "tiny", 9)


def test_outside_a_checkout_the_source_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert commit() == "unknown"


def test_a_limited_run_says_how_many_items_it_saw(
    verified: Verified, origin: Origin, data: DataSet, tmp_path: Path
) -> None:
    few = msgspec.structs.replace(data, train_x=data.train_x[:9], train_y=data.train_y[:9])
    manifest = read_manifest(publish(verified, origin, few, "Tiny.", "tiny", tmp_path, 1))
    assert manifest.dataset is not None
    assert manifest.dataset.train_items == 9


def test_the_example_is_the_first_test_image(published: Path, data: DataSet) -> None:
    with Image.open(published / EXAMPLE_FILE) as example:
        assert np.array_equal(np.asarray(example), data.test_x[0, :, :, 0])


def test_the_report_shows_what_the_manifest_says(published: Path) -> None:
    manifest, page = read_manifest(published), (published / "report.html").read_text()
    assert "Tiny digits." in page
    assert f"{manifest.metrics['accuracy']:.2%}".rstrip("%") in page
    assert manifest.files["model.onnx"].sha256 in page


def test_a_name_without_versions_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(VersionUnknown, match="holds no version"):
        highest_version(tmp_path, "tiny")
